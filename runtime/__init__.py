"""Runs the project's model repository with the Triton that `nvidia-pytriton` bundles: no GPU, no Docker.

    python -m runtime serve|demo|compose|doctor --help

From Python, for tests and scripts:

    from runtime.server import Server, ServerOptions

    with Server(ServerOptions(profile="nano")) as server:
        print(server.http_url, server.grpc_url)

Modules: `bootstrap` (the Python of `.venv`), `checks` (whether this machine suits), `devices` (cores, threads, CUDA),
`onnx_file` and `weights` (the networks' files), `compose` (the repository that Triton loads), `runs` (folder and shared
memory of one server), `process`, `keeper`, `procfs` and `logs` (the processes), `launcher` (start, and one model anew),
`gate` (the process in front), `health` (canary requests), `budgets` (memory), `supervision` (what is restarted),
`server` (all of it), `gpus` and `plans` (TensorRT plans), `doctor`, `demo` and `sheet` (`make demo`).
"""
