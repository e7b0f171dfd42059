"""A run as a page: Markdown for a terminal or a pull request, one HTML file with plots for everybody else."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.machine import sentence
from loadtest.thresholds import Verdict

Row = Sequence[str]
NOTE = (
    "Times count from the moment at which a request was to be sent, whether or not it could be. Percentiles are "
    "measured values (nearest rank). Rates are of the time in which requests were sent."
)
COMPARED = (
    ("pictures per second", ("throughput_per_s",)),
    ("p50, ms", ("latency_ms", "p50")),
    ("p95, ms", ("latency_ms", "p95")),
    ("p99, ms", ("latency_ms", "p99")),
    ("wrong answers", ("failures",)),
    ("refused as expected", ("expected_refusals",)),
    ("server's CPU, % of one core", ("server", "cpu_percent")),
    ("server's memory at most, MB", ("server", "rss_mb_most")),
)


def markdown(run: Mapping[str, Any], verdicts: Sequence[Verdict], before: Mapping[str, Any] | None = None) -> str:
    """The whole run in Markdown."""
    parts = [f"# Load test: {run['scenario']}, {run['date'][:16].replace('T', ' ')} UTC", _introduction(run)]
    for title, head, rows, note in _tables(run, before):
        parts.append(f"## {title}")
        if rows:
            parts.append("\n".join([_row(head), _rule(head), *map(_row, rows)]))
        if note:
            parts.append(note)
    if verdicts:
        parts.append("## Thresholds")
        parts.append("\n".join(f"- {verdict.text}" for verdict in verdicts))
    return "\n\n".join(parts) + "\n"


def page(
    run: Mapping[str, Any],
    verdicts: Sequence[Verdict],
    drawn: Mapping[str, Mapping[str, str]],
    before: Mapping[str, Any] | None = None,
) -> str:
    """The whole run as one HTML file that needs no other. `drawn`: SVG by title, by phase."""
    body = [f"<h1>Load test: {html.escape(run['scenario'])}</h1>", f"<p>{html.escape(_introduction(run))}</p>"]
    if verdicts:
        items = "".join(
            f'<li class="{"kept" if verdict.kept else "missed"}">{html.escape(verdict.text)}</li>'
            for verdict in verdicts
        )
        body.append(f"<h2>Thresholds</h2><ul>{items}</ul>")
    for title, head, rows, note in _tables(run, before):
        body.append(f"<h2>{html.escape(title)}</h2>")
        if rows:
            body.append(_html_table(head, rows))
        if note:
            body.append(f"<p>{html.escape(note)}</p>")
    for phase, plots in drawn.items():
        for title, svg in plots.items():
            caption = f"{title} ({phase})" if len(drawn) > 1 else title
            body.append(f"<figure><figcaption>{html.escape(caption)}</figcaption>{svg}</figure>")
    return _PAGE.format(title=html.escape(f"Load test: {run['scenario']}"), body="\n".join(body))


def _introduction(run: Mapping[str, Any]) -> str:
    phase = run["result"]["phase"]
    how = (
        f"open loop, {phase['rate']:.3g} requests per second on average, arriving by chance (Poisson)"
        if phase["loop"] == "open"
        else f"closed loop of {phase['users']} users"
    )
    grown = ", growing over the time" if phase["ramp"] else ""
    return (
        f"{run['target']}; {how}{grown}; {run['result']['seconds']:.0f} s; {run['sent_from']}. On {run['date'][:10]}, "
        f"{sentence(dict(run))} {NOTE}"
    )


def _tables(run: Mapping[str, Any], before: Mapping[str, Any] | None) -> list[tuple[str, Row, list[Row], str]]:
    """Title, head, rows and a note of each table."""
    found: list[tuple[str, Row, list[Row], str]] = [_summary(run)]
    if before is not None:
        found.append(_comparison(run, before))
    result = run["result"]
    found.append(
        (
            "Answers by kind",
            ("request", "answers", "served", "wrong", "p50 ms", "p95 ms", "p99 ms", "longest ms"),
            [
                (
                    kind["name"],
                    *map(str, (kind["answers"], kind["served"], kind["failures"])),
                    *_times(kind["latency_ms"]),
                )
                for kind in result["kinds"]
            ],
            "",
        )
    )
    found.append(
        (
            "Errors by code",
            ("code", "was right", "answers", "p50 ms", "p95 ms", "p99 ms", "longest ms", "first wrong one"),
            [
                (
                    error["code"],
                    "yes" if error["expected"] else "NO",
                    str(error["count"]),
                    *_times(error["latency_ms"]),
                    error["example"],
                )
                for error in result["errors"]
            ],
            "" if result["errors"] else "None.",
        )
    )
    found.append(
        (
            "Where the time of a picture goes",
            ("stage", "mean ms", "p50 ms", "p95 ms", "p99 ms"),
            [
                (stage, *(f"{spread[name]:.1f}" for name in ("mean", "p50", "p95", "p99")))
                for stage, spread in result["stages_ms"].items()
            ],
            "From the answers' own reports. Detect and matte include the wait for the network; the last row is what "
            "comes on top, from the caller's side.",
        )
    )
    found.append(_models(result))
    found.append(_server(result))
    return found


def _summary(run: Mapping[str, Any]) -> tuple[str, Row, list[Row], str]:
    head = (
        "phase",
        "offered/s",
        "answered/s",
        "pictures/s",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "longest ms",
        "refused",
        "wrong",
    )
    rows: list[Row] = [
        (
            phase["phase"]["name"],
            f"{phase['offered_per_s']:.2f}",
            f"{phase['answers_per_s']:.2f}",
            f"{phase['throughput_per_s']:.2f}",
            *_times(phase["latency_ms"]),
            str(phase["expected_refusals"]),
            f"{phase['failures']} ({phase['failure_share']:.1%})",
        )
        for phase in run["phases"]
    ]
    note = ""
    if len(run["phases"]) > 1 and run["phases"][0]["throughput_per_s"]:
        share = run["result"]["throughput_per_s"] / run["phases"][0]["throughput_per_s"]
        refusal = run["result"]["refusal_ms"]
        note = f"In the last phase {share:.0%} of the first one's pictures per second were served."
        if refusal:
            note += f" Refusals took {refusal['p50']:.0f} ms (median; p99 {refusal['p99']:.0f} ms)."
    late = run["result"]["late_ms"]
    if late["p99"] > 50:
        note += (
            f" Requests went out {late['p99']:.0f} ms late (p99): the sending side was short of time or connections."
        )
    return ("Result", head, rows, note)


def _comparison(run: Mapping[str, Any], before: Mapping[str, Any]) -> tuple[str, Row, list[Row], str]:
    rows: list[Row] = []
    for name, path in COMPARED:
        then, now = (_at(each["result"], path) for each in (before, run))
        if then is not None and now is not None:
            change = f"{(now - then) / then:+.1%}" if then else "–"
            rows.append((name, f"{then:.4g}", f"{now:.4g}", change))
    stages = set(before["result"]["stages_ms"]) & set(run["result"]["stages_ms"])
    for stage in run["result"]["stages_ms"]:
        if stage in stages:
            then, now = (each["result"]["stages_ms"][stage]["p50"] for each in (before, run))
            rows.append(
                (f"{stage}, median ms", f"{then:.4g}", f"{now:.4g}", f"{(now - then) / then:+.1%}" if then else "–")
            )
    unlike = [
        word
        for word, differs in (
            ("another scenario", before["scenario"] != run["scenario"]),
            ("another loop", before["result"]["phase"]["loop"] != run["result"]["phase"]["loop"]),
            ("another number of users", before["result"]["phase"]["users"] != run["result"]["phase"]["users"]),
            ("another machine", before["machine"]["cpu"] != run["machine"]["cpu"]),
        )
        if differs
    ]
    note = f"Beware, the earlier run is of {', '.join(unlike)}." if unlike else ""
    return (f"Compared with {before['date'][:16].replace('T', ' ')}", ("figure", "then", "now", "change"), rows, note)


def _models(result: Mapping[str, Any]) -> tuple[str, Row, list[Row], str]:
    rows: list[Row] = [
        (
            model,
            f"{found['requests']:.0f}",
            f"{found['mean_batch']:.2f}",
            f"{found['queue_ms']:.1f}",
            f"{found['compute_ms']:.1f}",
            f"{found['most_pending']:.0f}",
        )
        for model, found in result["models"].items()
    ]
    head = ("model", "requests", "mean batch", "queue, mean ms", "compute, mean ms", "most waiting")
    note = "" if rows else "Not measured: the server's metrics could not be read (--metrics-url)."
    return ("Triton's own counters", head, rows, note)


def _server(result: Mapping[str, Any]) -> tuple[str, Row, list[Row], str]:
    found = result["server"]
    head = ("", "first", "most", "last")
    if found is None:
        return ("The server's processes", head, [], "Not measured: the server's processes are not on this machine.")
    rows: list[Row] = [
        ("memory, MB", *(f"{found[f'rss_mb_{when}']:.0f}" for when in ("first", "most", "last"))),
        ("threads", str(found["threads_first"]), "", str(found["threads_last"])),
        ("open files", str(found["fds_first"]), "", str(found["fds_last"])),
        ("shared memory, MB", f"{found['shm_mb_first']:.1f}", "", f"{found['shm_mb_last']:.1f}"),
    ]
    return ("The server's processes", head, rows, f"CPU: {found['cpu_percent']:.0f} % of one core on average.")


def _times(spread: Mapping[str, float] | None) -> tuple[str, ...]:
    names = ("p50", "p95", "p99", "max")
    return tuple("–" if spread is None else f"{spread[name]:.0f}" for name in names)


def _at(values: Any, path: Sequence[str]) -> float | None:
    for key in path:
        if values is None:
            return None
        values = values[key]
    return float(values)


def _row(cells: Row) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _rule(head: Row) -> str:
    return f"|---|{'--:|' * (len(head) - 1)}"


def _html_table(head: Row, rows: Sequence[Row]) -> str:
    heads = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    lines = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table>"


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }}
h1, h2 {{ line-height: 1.2; }} h2 {{ font-size: 1.1rem; margin: 2rem 0 .5rem; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .2rem .7rem; border-bottom: 1px solid #ddd; text-align: right; }}
th:first-child, td:first-child {{ text-align: left; }}
figure {{ margin: 2rem 0; }} figcaption {{ font-weight: 600; }} svg {{ max-width: 100%; height: auto; }}
.kept {{ color: #1b7f5c; }} .missed {{ color: #c1121f; font-weight: 600; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""
