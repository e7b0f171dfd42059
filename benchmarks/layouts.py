"""How many pipelines, and how many threads for a network: layouts in turn (`python -m benchmarks.layouts`).

One server for each layout is started, and they take turns within every round, asked by one client and by several. Idle
servers cost nothing. Prints a table in Markdown: milliseconds at one client, answers per second at several.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import cutaway

from benchmarks.machine import load_before, machine, sentence, versions
from benchmarks.side_by_side import in_turn, photograph, volley
from benchmarks.spread import figure, ratio
from runtime.checks import RuntimeProblem
from runtime.demo import SAMPLES, find_pictures
from runtime.server import Server, ServerOptions

LAYOUTS = ("2x2", "3x2", "2x1", "3x1")
ROUNDS = 6
ASKS = 3
ASKS_ALONE = 4

Times = dict[str, list[list[float]]]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    load, warning = load_before()
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
    pictures = [photograph(path, options.megapixels) for path in find_pictures([SAMPLES])]
    alone: Times = {layout: [] for layout in options.layouts}
    together: Times = {layout: [] for layout in options.layouts}
    try:
        with ExitStack() as stack:
            steps: list[Callable[[], None]] = []
            for layout in options.layouts:
                instances, _, threads = layout.partition("x")
                server = stack.enter_context(
                    Server(ServerOptions(instances=int(instances), threads=int(threads), canary_interval_s=3600.0))
                )
                client = stack.enter_context(cutaway.Client(server.grpc_url, timeout_s=300.0))
                steps.append(_measurement(client, options, pictures, alone[layout], together[layout]))
            for step in steps:
                step()
            for times in (*alone.values(), *together.values()):
                times.clear()
            for number in range(options.rounds):
                for step in in_turn(steps, number):
                    step()
    except RuntimeProblem as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    first = options.layouts[0]
    print(
        f"{options.megapixels:g} megapixels, subject {options.subject}, {options.rounds} rounds\n\n"
        f"| pipelines x threads | one client, ms | against {first} | {options.clients} clients, per second | "
        f"against {first} |\n|---|--:|--:|--:|--:|"
    )
    for layout in options.layouts:
        figures = (
            figure(alone[layout]),
            ratio(alone[layout], alone[first]),
            figure(together[layout]),
            ratio(together[layout], together[first]),
        )
        cells = (f"{each.value:.2f} ({each.low:.2f}–{each.high:.2f})" for each in figures)
        print(f"| {layout} | {' | '.join(cells)} |")
    packages = ("onnxruntime", "numpy", "nvidia-pytriton")
    print(f"\n{sentence({'machine': machine(load), 'versions': versions(packages)})}")
    return 0


def _measurement(
    client: cutaway.Client,
    options: argparse.Namespace,
    pictures: Sequence[bytes],
    alone: list[list[float]],
    together: list[list[float]],
) -> Callable[[], None]:
    def cut(data: bytes) -> bytes:
        return client.cut(data, subject=options.subject).images[0]

    def measure() -> None:
        alone.append(volley(cut, pictures, 1, ASKS_ALONE)[0])
        latencies_ms, wall_s = volley(cut, pictures, options.clients, ASKS)
        together.append([len(latencies_ms) / wall_s])

    return measure


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layouts", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "layouts", nargs="*", default=LAYOUTS, metavar="PIPELINESxTHREADS", help=f"(default: {' '.join(LAYOUTS)})"
    )
    parser.add_argument("--megapixels", type=float, default=1.0, help="(default: 1)")
    parser.add_argument("--subject", choices=("people", "all"), default="people", help="(default: people)")
    parser.add_argument("--clients", type=int, default=8, help="(default: 8)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"(default: {ROUNDS})")
    return parser


if __name__ == "__main__":
    sys.exit(main())
