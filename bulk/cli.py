"""The command ``python -m bulk``."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import ray
from cutaway.cli import codes, options
from cutaway.cli.console import reason, say
from cutaway.cli.options import option
from cutaway.contract.limits import INPUT_LIMITS
from cutaway.contract.options import parse_options
from obstore.exceptions import BaseError

from bulk import job
from bulk.networks import weights_folder
from bulk.output import MANIFEST, OK, JobProblem, Output
from bulk.sources import EACH_AN_ADDRESS, SourceProblem, find
from bulk.worker import JobStopped, Settings
from runtime.checks import RuntimeProblem
from runtime.compose import DETECTOR
from runtime.devices import choose_device, cores
from runtime.weights import load_networks, read_checksums

DEVICES = "auto", "cpu", "cuda", "tensorrt"
EPILOG = f"""\b
Exit codes:
{codes.OK}    everything worked, or was there already
{codes.FAILED}    pictures failed, others were done: the manifest says which, and why
{codes.USAGE}    the command line makes no sense, names no picture, or another job's folder
{codes.UNAVAILABLE}    the job cannot go on: networks, Ray, a full disk; pictures left were not tried
{codes.INTERRUPTED}  interrupted; what is done is kept, the same command goes on
"""


@click.command(
    epilog=EPILOG,
    params=[
        click.Argument(["source"], metavar="SOURCE"),
        option(
            "-o", "--output-dir", required=True, metavar="WHERE", help="Folder or URL of the results; empty at first."
        ),
        option("--column", default="path", help="Of a list, where its paths and URLs are."),
        option("--profile", default="nano", help="The networks."),
        option("--weights", metavar="DIR", help="Their folder, on every node, where it is not the profile's."),
        option("--device", type=click.Choice(DEVICES), default="auto", help="auto: CUDA where it works."),
        option("--workers", type=click.IntRange(1), help="Processes that cut out [default: one for each CPU]."),
        option("--threads", type=click.IntRange(1), default=1, help="CPUs of a worker, for large networks on a CPU."),
        option(
            "--shared",
            type=click.IntRange(0),
            help="Processes with the networks of all workers, whose pictures "
            "become batches [default: one for each GPU; without any, each worker has its own].",
        ),
        option(
            "--address", metavar="HOST:PORT", help="A Ray cluster; auto on one of its nodes [default: this machine]."
        ),
        option(
            "--max-decompression-ratio",
            type=options.ABOVE_0,
            envvar=codes.RATIO_VARIABLE,
            show_envvar=True,
            default=INPUT_LIMITS.max_decompression_ratio,
            help="As of the server.",
        ),
        *options.table(),
    ],
)
@click.pass_context
def command(context: click.Context, /, **given: Any) -> int:
    """Cut all pictures of SOURCE out: a folder, a bucket such as s3://bucket/prefix, or a .csv or .parquet list.

    Results are WHERE/NAME.jpg.png, or NAME.jpg.ID.png with --subject each; WHERE/_cutaway/manifest has a row for each
    picture. The same command again goes on where the last one ended.
    """
    try:
        return _run(context, given)
    except (SourceProblem, JobProblem) as problem:
        raise click.UsageError(str(problem)) from None


def _run(context: click.Context, given: dict[str, Any]) -> int:
    chosen = parse_options(options.given_options(context))
    root = absolute(given["output_dir"])
    source, names = find(given["source"], root, given["column"])
    folder = weights_folder(given["profile"], given["weights"])
    networks = load_networks(folder)
    output = Output(root)
    named = "a list" if source == EACH_AN_ADDRESS else source
    output.claim({"source": named, "options": asdict(chosen), "networks": read_checksums(folder)})
    done = output.done()
    left = [name for name in names if name not in done]
    before, tally = Counter(done[name] for name in names if name in done), Counter[str]()
    code, begun = codes.OK, time.monotonic()
    try:
        if left:
            device, local = given["device"], given["address"] is None
            if device == "auto" and local:
                found = choose_device("auto", networks[DETECTOR].path)
                device = found.kind
                say(f"warning: {found.warning}", err=True) if found.warning else None
            workers, threads = given["workers"], given["threads"]
            places = workers * threads if workers else max(cores(), threads)
            with job.connected(given["address"], places) as (cpus, gpus):
                begun = time.monotonic()
                device = ("cuda" if gpus else "cpu") if device == "auto" else device
                shared = given["shared"] if given["shared"] is not None else 0 if device == "cpu" else gpus
                if device != "cpu" and shared > gpus:
                    raise click.UsageError(f"--shared {shared} wants a GPU for each, and Ray sees {gpus}")
                workers = workers or max(1, cpus // (1 if shared else threads))
                ratio = given["max_decompression_ratio"]
                about = source, output.root, chosen, given["profile"], given["weights"], device, threads, ratio
                job.run(Settings(*about), left, workers, shared, tally)
    except KeyboardInterrupt:
        say("interrupted", err=True)
        code = codes.INTERRUPTED
    except (JobStopped, RuntimeProblem, ConnectionError, ray.exceptions.RayError, RuntimeError) as error:
        say(f"stopped: {_reason(error)}; the same command goes on from here", err=True)
        code = codes.UNAVAILABLE
    say(_summary(before, tally, len(names), time.monotonic() - begun), err=True)
    say(f"manifest: {output.root}/{MANIFEST}")
    return code or (codes.OK if set(before | tally) <= {OK} else codes.FAILED)


def absolute(where: str) -> str:
    """A folder as an absolute path, a URL without a slash at its end."""
    return where.rstrip("/") if "://" in where else str(Path(where).resolve())


def _summary(before: Counter[str], tally: Counter[str], pictures: int, seconds: float) -> str:
    known = before + tally
    failed, left = known.total() - known[OK], pictures - known.total()
    codes_of_these = ", ".join(f"{number:,} {code}" for code, number in sorted(known.items()) if code != OK)
    parts = [f"{tally[OK]:,} of {pictures:,} pictures done"]
    parts += [f"{before[OK]:,} there already"] if before[OK] else []
    parts += [f"{failed:,} failed ({codes_of_these})"] if failed else []
    parts += [f"{left:,} not tried"] if left else []
    return "; ".join([*parts, f"{tally.total() / seconds:.1f} pictures per second"])


def _reason(error: BaseException) -> str:
    """What was raised in a worker, without Ray's frames around it."""
    while inner := getattr(error, "cause", None) or error.__cause__:
        error = inner
    return reason(error).strip().splitlines()[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    try:
        return int(command.main(arguments, prog_name="python -m bulk", standalone_mode=False) or codes.OK)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except RuntimeProblem as problem:
        say(f"error: {problem}", err=True)
        return codes.UNAVAILABLE
    except (click.Abort, KeyboardInterrupt):
        return codes.INTERRUPTED
    except (OSError, BaseError) as error:
        say(f"error: {reason(error)}", err=True)
        return codes.UNAVAILABLE
