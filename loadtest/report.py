"""A run in Markdown: what Locust's own report does not have, or not of all requests together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.machine import sentence

TIMES = ("p50", "p95", "p99", "max")
LATE_MS = 50


def markdown(run: Mapping[str, Any]) -> str:
    """The whole run."""
    result = run["result"]
    parts = [
        f"# Load test: {run['scenario']}, {run['date'][:16].replace('T', ' ')} UTC",
        f"{run['target']}. {sentence(dict(run))} Times count from the moment at which a request was to be sent. Rates "
        "are of the time in which requests were sent. Each request, plots and failures: Locust's .html and .csv.",
        _table(
            ("phase", "sent/s", "answered/s", "pictures/s", *(f"{name} ms" for name in TIMES), "refused", "wrong"),
            (
                (
                    each["phase"]["phase"] or each["phase"]["name"],
                    *(f"{each[name]:.2f}" for name in ("sent_per_s", "answers_per_s", "throughput_per_s")),
                    *_times(each["latency_ms"]),
                    str(each["expected_refusals"]),
                    f"{each['failures']} ({each['failure_share']:.1%})",
                )
                for each in run["phases"]
            ),
        ),
    ]
    refusal, late = result["refusal_ms"], result["late_ms"]
    if refusal:
        parts.append(f"Refusals took {refusal['p50']:.0f} ms (median; p99 {refusal['p99']:.0f} ms).")
    if late and late["p99"] > LATE_MS:
        parts.append(f"Requests went out {late['p99']:.0f} ms late (p99): the sender was short of time or connections.")
    if result["codes"]:
        rows: list[Sequence[str]] = [
            (code, str(each["answers"]), str(each["wrong"])) for code, each in result["codes"].items()
        ]
        parts.append(_table(("error code", "answers", "of them wrong"), rows))
    if result["stages_ms"]:
        rows = [(name, f"{each['mean']:.1f}", *_times(each)) for name, each in result["stages_ms"].items()]
        parts.append(_table(("stage", "mean ms", *(f"{name} ms" for name in TIMES)), rows))
    if result["models"]:
        head = ("model", "requests", "mean batch", "queue, mean ms", "compute, mean ms", "most waiting")
        keys = ("requests", "mean_batch", "queue_ms", "compute_ms", "most_pending")
        models = result["models"].items()
        parts.append(_table(head, ((model, *(f"{found[key]:.1f}" for key in keys)) for model, found in models)))
    parts.append(_server(result["server"]))
    parts += ["\n".join(f"- {text}" for text in run["thresholds"])] if run["thresholds"] else []
    return "\n\n".join(parts) + "\n"


def _server(found: Mapping[str, float] | None) -> str:
    if found is None:
        return "The server's processes are not on this machine, or may not be looked at."
    ends = (("threads", "threads"), ("fds", "open files"), ("shm_mb", "MB of shared memory"))
    return (
        f"The server's processes: {found['cpu_percent']:.0f} % of one core on average; {found['rss_mb_first']:.0f} MB "
        f"first, {found['rss_mb_most']:.0f} at most, {found['rss_mb_last']:.0f} last; first and last "
        + ", ".join(f"{found[f'{key}_first']:.0f} and {found[f'{key}_last']:.0f} {what}" for key, what in ends)
        + "."
    )


def _times(spread: Mapping[str, float] | None) -> Sequence[str]:
    return tuple("–" if spread is None else f"{spread[name]:.0f}" for name in TIMES)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
