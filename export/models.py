"""`python -m export models PROFILE`: from nothing to what Triton serves, by `fetch`, `onnx`, and `plan` where it can.

TensorRT plans are read only by the TensorRT that wrote them, so they are built where they are served: in the image of
docker-compose.yml, or here, where TensorRT is installed. Without it the ONNX files are the result, and it is said so.
"""

import argparse
from importlib import import_module
from importlib.util import find_spec

from export import ExportError
from export.catalog import load_catalog
from export.onnx_models import add_profile_arguments

BINDINGS = ("tensorrt", "tensorrt_bindings")
"""TensorRT's Python package by its usual name, and by the one that NVIDIA's bindings alone have."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Fetch a profile's weights, make ONNX files of them, and build TensorRT plans where TensorRT is installed."
    )
    parser.epilog = "Each step is a command of its own with more options: fetch, onnx, plan."
    add_profile_arguments(parser)
    parser.add_argument("--from", dest="folder", metavar="DIR", help="take the weights from here; no network")
    parser.add_argument("--mirror", metavar="URL", help="fetch through a mirror")
    parser.add_argument("--no-plan", action="store_true", help="stop at the ONNX files")


def tensorrt_major() -> str | None:
    """The major version of the TensorRT that is installed, "10" say; None without one.

    Raises:
        ExportError: its package is here and does not load.
    """
    for name in BINDINGS:
        if find_spec(name) is None:
            continue
        try:
            return str(import_module(name).__version__).partition(".")[0]
        except (ImportError, OSError) as error:
            raise ExportError(
                f"TensorRT's package {name} is installed and does not load ({error}); it needs TensorRT's libraries in "
                "its own version; --no-plan makes the ONNX files without it"
            ) from None
    return None


def steps(arguments: argparse.Namespace, major: str | None) -> list[list[str]]:
    """The command lines of the steps, as `python -m export` takes them."""
    profile = load_catalog(arguments.catalog).profile(arguments.profile)
    table = ["--catalog", str(arguments.catalog)]
    detector = ["--detector", arguments.detector] if arguments.detector else []
    source = ["--from", arguments.folder] if arguments.folder else []
    source += ["--mirror", arguments.mirror] if arguments.mirror else []
    models = ["--models", str(arguments.models)]
    side = ["--side", str(arguments.side)] if arguments.side else []
    found = [
        ["fetch", profile.name, *table, *detector, *source, "--output", str(arguments.weights)],
        ["onnx", profile.name, *table, *detector, "--weights", str(arguments.weights), *models, *side],
    ]
    if major is not None:
        found.append(["plan", profile.name, "--trt-major", major, *models])
    return found


def run(arguments: argparse.Namespace) -> int:
    from export.__main__ import main

    major = None if arguments.no_plan else tensorrt_major()
    for step in steps(arguments, major):
        print(f"python -m export {' '.join(step[:2])} …", flush=True)
        status = main(step)
        if status:
            return status
    if major is None and not arguments.no_plan:
        print(
            "TensorRT is not installed here, so there are no plans. On a machine with a GPU and Docker: "
            f"docker compose run --rm export {arguments.profile}"
        )
    return 0
