"""The report of `benchmarks.bulk`: a page and a plot."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.machine import sentence
from runtime.devices import cores

WORKER, LEDGER, DRIVER = "MapWorker", "Ledger", "driver"
"""What processes of a job are: Ray names the first two so."""
NODES, NODE_CORES = (1, 4, 16, 64), 16


def draw(report: dict[str, Any], path: Path) -> None:
    """Pictures per second under way by the number of workers, below what the networks alone let the cores do."""
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    most = max(each["workers"] for each in report["jobs"])
    bound = [min(workers, cores()) * 1000 / report["floor_ms"] for workers in range(most + 1)]
    axes.plot(range(most + 1), bound, "--", color="tab:grey", label="networks alone (bound)")
    axes.axhline(report["triton"]["per_second"], color="tab:orange", label="Triton, cut_many of the SDK")
    workers = sorted({each["workers"] for each in report["jobs"]})
    rates = [
        median(each["steady_per_second"] for each in report["jobs"] if each["workers"] == count) for count in workers
    ]
    axes.plot(workers, rates, "o-", label="python -m bulk")
    axes.set(
        title=f"Bulk jobs by workers, {cores()} cores, profile nano",
        xlabel="workers (processes of one thread)",
        ylabel="pictures per second",
        xticks=workers,
    )
    axes.set_xlim(0, most + 0.2)
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def markdown(report: dict[str, Any]) -> str:
    floor, served, again = report["floor_ms"], report["triton"], report["deaths"]["again"]
    lines = [
        f"# Bulk jobs, {report['date'][:10]}",
        "",
        f"{sentence(report)} Load after the run {report['load_after']}.",
    ]
    heads = [
        "",
        "pictures",
        "CPU ms of a picture",
        "of workers",
        "under way",
        "driver, ledger",
        "per second, under way",
        "workers, MB",
    ]
    lines += ["", f"| {' | '.join(heads)} |"]
    lines += [f"|---|{'--:|' * 7}", f"| networks alone | {served['pictures']} | {floor:.1f} | | | | | |"]
    lines += [f"| Triton | {served['pictures']} | {served['cpu_ms']:.1f} | | | | {served['per_second']:.2f} | |"]
    for each in (*report["jobs"], again):
        spent, name = each["cpu_ms"], f"{each['workers']} workers" + ", after the deaths" * (each is again)
        cells = [
            name,
            each["pictures"],
            f"{sum(spent.values()):.1f}",
            f"{spent[WORKER]:.1f}",
            f"{each['steady_ms']:.1f}",
        ]
        cells += [
            f"{spent[DRIVER]:.1f}, {spent[LEDGER]:.1f}",
            f"{each['steady_per_second']:.2f}",
            " → ".join(f"{mb:.0f}" for mb in each["workers_mb"]),
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    like = [each for each in report["jobs"] if each["workers"] == cores()] or report["jobs"][-1:]
    of_floor = [each["floor_ms"] / each["steady_ms"] for each in like]
    of_triton = [served["cpu_ms"] / each["steady_ms"] for each in like]
    for what, found, wanted in (("the networks alone", of_floor, 0.9), ("Triton", of_triton, 1.0)):
        verdict = "met" if median(found) >= wanted else "missed"
        spread = f"{median(found):.2f} ({min(found):.2f} to {max(found):.2f}, {len(found)} runs)"
        lines += ["", f"Throughput of workers under way against {what}: {spread}; wanted {wanted}: {verdict}."]
    lines += ["", ", ".join(f"{value} {name}" for name, value in report["deaths"]["counts"].items()) + "."]
    driver_ms, ledger_ms = report["serial_ms"][DRIVER], report["serial_ms"][LEDGER]
    most = 1000 / max(driver_ms, ledger_ms)
    lines += [
        "",
        f"Of a picture {driver_ms:.2f} ms are the driver's, {ledger_ms:.2f} the ledger's: at most {most:,.0f}/s.",
    ]
    steady_ms = median(each["steady_ms"] for each in like)
    for nodes in NODES:
        rate = min(nodes * NODE_CORES * 1000 / steady_ms, most)
        lines += ["", f"{nodes} nodes of {NODE_CORES} such cores, computed: {rate:,.0f} pictures per second."]
    return "\n".join([*lines, ""])
