"""`python -m runtime`: run the project's models on the bundled Triton."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from runtime.checks import RuntimeProblem, check_platform, check_python
from runtime.process import endpoint_of_spans

PROG = "python -m runtime"


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 success, 1 a problem (one line on stderr), 2 a wrong command line, 130 interrupted."""
    try:
        options = _parser().parse_args(arguments)
        run: Callable[[argparse.Namespace], int] = options.run
        return run(options)
    except RuntimeProblem as problem:
        return _fail(problem)
    except ModuleNotFoundError as error:
        return _fail(_missing(error))
    except KeyboardInterrupt:
        return 130


def _fail(problem: RuntimeProblem) -> int:
    print(f"error: {problem}", file=sys.stderr)
    return 1


def _missing(error: ModuleNotFoundError) -> RuntimeProblem:
    """The problem that a missing package is: most often the command runs outside its environment."""
    try:
        check_platform()
        check_python()
    except RuntimeProblem as problem:
        return problem
    return RuntimeProblem(
        f"the Python package {error.name} is not installed for {sys.executable}; run: make serve, which makes .venv, "
        "or pip install '.[serve]'"
    )


def _parser() -> argparse.ArgumentParser:
    from cutaway.contract.limits import PROFILES

    from runtime.schedule import SCHEDULES

    parser = argparse.ArgumentParser(
        prog=PROG, description="Run the project's models on the bundled Triton: no GPU, no Docker."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    models = argparse.ArgumentParser(add_help=False)
    group = models.add_argument_group("models")
    group.add_argument("--profile", default="nano", choices=PROFILES, help="the model pair (default: nano, bundled)")
    group.add_argument(
        "--weights",
        type=Path,
        metavar="DIR",
        help="folder of yolov8_seg.onnx, birefnet_trt.onnx and SHA256SUMS "
        "(default: $CUTAWAY_WEIGHTS, else models/PROFILE, else export/weights/PROFILE)",
    )
    group.add_argument(
        "--device",
        default="auto",
        choices=("auto", "cpu", "cuda"),
        help="what the networks run on: 'auto' takes CUDA where onnxruntime-gpu and a GPU work, 'cuda' insists on it",
    )
    group.add_argument(
        "--instances", type=_positive, metavar="N", help="pictures served at once (default: one per core, 2 to 8)"
    )
    group.add_argument(
        "--threads", type=_positive, metavar="N", help="threads of one network's run (default: one per core)"
    )
    group.add_argument(
        "--queue-size",
        type=_positive,
        metavar="N",
        help="pictures that may wait before load is shed (default: 8 per instance on a CPU, 64 on a GPU)",
    )
    group.add_argument(
        "--processing-timeout",
        type=_seconds,
        metavar="SECONDS",
        help="timeout of one picture (default: 30); large networks on a CPU need more",
    )
    group.add_argument(
        "--schedule",
        default="free",
        choices=SCHEDULES,
        help="'limited': at most two runs of detectors and one of matting networks at a time on a device, by Triton's "
        "rate limiter; 'free' (default): as many as there are instances",
    )
    group.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="where the composed repository and the logs go (default: .cache/runtime in the checkout)",
    )

    serve = commands.add_parser(
        "serve",
        parents=[models],
        help="run the server until Ctrl-C",
        description="Run the server until Ctrl-C or SIGTERM. It is ready when a small picture went through, runs "
        "health checks, and restarts what dies or hangs.",
    )
    network = serve.add_argument_group("network")
    network.add_argument(
        "--address", default="127.0.0.1", help="what to listen on; 0.0.0.0 for other machines (default: 127.0.0.1)"
    )
    for name, use, default in (("http", "HTTP", 8000), ("grpc", "gRPC", 8001), ("metrics", "Prometheus metrics", 8002)):
        network.add_argument(
            f"--{name}-port",
            type=_port,
            default=default,
            metavar="PORT",
            help=f"{use} (default: {default}; 0: any free)",
        )
    network.add_argument(
        "--service-port",
        type=int,
        default=55433,
        metavar="PORT",
        help="the page and the HTTP service (default: 55433; 0: any free; -1: none)",
    )
    for name, use in (("hosts", "a further name of this server in Host headers"), ("origins", "pages that may call")):
        network.add_argument(
            f"--{name}", action="append", default=[], metavar="NAME", help=f"{use}; may be repeated, * for all"
        )
    network.add_argument(
        "--direct",
        action="store_true",
        help="leave the gate out: Triton itself listens. Only where everybody who reaches it is trusted: a malformed "
        "request can end it, nothing bounds what it takes, and a model process that dies restarts all of it",
    )
    serve.add_argument(
        "--verbose", type=int, default=0, choices=range(5), metavar="0-4", help="Triton's own log level (default: 0)"
    )
    serve.add_argument(
        "--traces-url",
        default=endpoint_of_spans(os.environ),
        metavar="URL",
        help="export OpenTelemetry spans there, as OTLP over HTTP, such as http://127.0.0.1:4318/v1/traces "
        "(default: what OTEL_EXPORTER_OTLP_ENDPOINT says, else none)",
    )
    serve.add_argument(
        "--access-log-stdout",
        action="store_true",
        help="print the gate's line for each request here instead of into the server's log",
    )
    serve.add_argument(
        "gateway_options",
        nargs="*",
        type=_gateway_option,
        metavar="-- --NAME=VALUE",
        help="options of `python -m gateway`, such as -- --keys=FILE --redis-url=URL; see its --help",
    )
    serve.set_defaults(run=_serve)

    demo = commands.add_parser(
        "demo",
        parents=[models],
        help="cut people out of the sample pictures, then stop",
        description="Start the server on free ports, cut the people out of pictures, write the cut-outs and one "
        "before/after sheet, and stop.",
    )
    demo.add_argument("pictures", nargs="*", type=Path, help="pictures or folders (default: samples/)")
    demo.add_argument(
        "-o", "--output", type=Path, default=Path("demo-output"), metavar="DIR", help="default: demo-output"
    )
    demo.set_defaults(run=_demo)

    composing = commands.add_parser(
        "compose",
        parents=[models],
        help="only write the repository that Triton would load",
        description="Write the repository that Triton would load into a folder, to look at or to serve by other means.",
    )
    composing.add_argument("target", type=Path, metavar="FOLDER", help="a folder that is empty or not there yet")
    composing.add_argument(
        "--plans",
        action="store_true",
        help="with the profile's TensorRT plans, for a Triton of your own that has the TensorRT backend; they are "
        "checked against this machine first",
    )
    composing.add_argument(
        "--network-instances",
        type=_positive,
        metavar="N",
        help="with --plans: of each network on each GPU (default: 1)",
    )
    composing.add_argument(
        "--gpus", type=int, nargs="+", default=[], metavar="N", help="with --plans: which are used (default: all)"
    )
    composing.set_defaults(run=_compose)

    doctor = commands.add_parser(
        "doctor",
        parents=[models],
        help="check whether this machine can run the server",
        description="Check platform, Python, Triton, weights, device, disk and shared memory; one line each.",
    )
    doctor.set_defaults(run=_doctor)
    return parser


def _gateway_option(text: str) -> str:
    if not text.startswith("--"):
        raise argparse.ArgumentTypeError(f"{text!r} is no option of the gateway: write --name=value after --")
    return text


def _serve(options: argparse.Namespace) -> int:
    from runtime.server import Server, ServerOptions, serve_until_stopped

    server = Server(
        ServerOptions(
            profile=options.profile,
            weights=options.weights,
            address=options.address,
            http_port=options.http_port,
            grpc_port=options.grpc_port,
            metrics_port=options.metrics_port,
            instances=options.instances,
            threads=options.threads,
            queue_size=options.queue_size,
            processing_timeout_s=options.processing_timeout,
            device=options.device,
            schedule=options.schedule,
            cache_dir=options.cache_dir,
            verbose=options.verbose,
            traces_url=options.traces_url,
            access_log_fd=1 if options.access_log_stdout else None,
            direct=options.direct,
            hosts=tuple(options.hosts),
            origins=tuple(options.origins),
            service_port=options.service_port,
            gateway_options=tuple(options.gateway_options),
        ),
        say=_say,
    )
    serve_until_stopped(server, _say)
    return 0


def _demo(options: argparse.Namespace) -> int:
    from runtime.demo import run_demo
    from runtime.server import ServerOptions

    # As Ctrl-C does it: the server's context ends it on the way out.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run_demo(
        ServerOptions(
            profile=options.profile,
            weights=options.weights,
            instances=options.instances,
            threads=options.threads,
            queue_size=options.queue_size,
            processing_timeout_s=options.processing_timeout,
            device=options.device,
            cache_dir=options.cache_dir,
        ),
        pictures=options.pictures,
        output=options.output,
        say=_say,
    )
    return 0


def _compose(options: argparse.Namespace) -> int:
    from runtime.compose import compose
    from runtime.devices import choose_device, cores, plan
    from runtime.server import ServerOptions
    from runtime.weights import load_networks

    if options.target.exists() and (not options.target.is_dir() or any(options.target.iterdir())):
        raise RuntimeProblem(f"{options.target} is not an empty folder; name another one")
    folder = ServerOptions(profile=options.profile, weights=options.weights).weights_dir
    if options.plans:
        return _compose_plans(options, folder)
    device = choose_device(options.device, load_networks(folder)["yolov8_seg"].path)
    composed = compose(
        options.target,
        profile=options.profile,
        networks=load_networks(folder, int8=device.int8),
        device=device,
        plan=plan(cores(), options.instances, options.threads),
        queue_size=options.queue_size,
        processing_timeout_s=options.processing_timeout,
        schedule=options.schedule,
    )
    _say_arguments(options)
    _say(f"{composed.folder}: {composed.processes} model processes, mattes of {composed.matte_side_px} px")
    return 0


def _say_arguments(options: argparse.Namespace) -> None:
    from runtime.schedule import schedule_arguments

    if arguments := schedule_arguments(options.schedule):
        _say(f"start Triton with {' '.join(arguments)}")


def _compose_plans(options: argparse.Namespace, folder: Path) -> int:
    from runtime.compose import compose_plans
    from runtime.gpus import look_at_host
    from runtime.plans import check_plans

    host = look_at_host().of(options.gpus)
    plans = check_plans(folder, host)
    for warning in (line for plan in plans.values() for line in plan.warnings):
        _say(f"warning: {warning}")
    composed = compose_plans(
        options.target,
        profile=options.profile,
        plans=plans,
        device=host.device,
        instances=options.instances,
        network_instances=options.network_instances,
        gpus=options.gpus,
        schedule=options.schedule,
    )
    _say_arguments(options)
    _say(f"{composed.folder}: TensorRT plans and {composed.processes} pipelines, mattes of {composed.matte_side_px} px")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from runtime.doctor import examine
    from runtime.server import ServerOptions

    healthy = True
    for finding in examine(
        ServerOptions(
            profile=options.profile,
            weights=options.weights,
            device=options.device,
            instances=options.instances,
            threads=options.threads,
            cache_dir=options.cache_dir,
        )
    ):
        healthy = healthy and finding.mark != "problem"
        print(f"{finding.mark:8} {finding.subject:14} {finding.text}", flush=True)
    return 0 if healthy else 1


def _say(line: str) -> None:
    print(f"cutaway: {line}", flush=True)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError("above 0")
    return number


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError("0 to 65535")
    return number


if __name__ == "__main__":
    sys.exit(main())
