"""Runs the project's model repository with the Triton that `nvidia-pytriton` bundles: no GPU, no Docker.

    python -m runtime serve|demo|compose|doctor --help

From Python, for tests and scripts:

    from runtime.server import Server, ServerOptions

    with Server(ServerOptions(profile="nano")) as server:
        print(server.http_url, server.grpc_url)

Modules: `checks` (is this machine fit), `devices` (cores, threads, CUDA), `onnx_file` and `weights` (the networks'
files), `compose` (the repository that Triton loads), `runs` (folders and shared memory of one server), `process` and
`keeper` (the processes), `health` (the canary), `server` (supervision), `demo` and `sheet` (`make demo`).
"""
