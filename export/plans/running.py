"""A plan on the GPU: TensorRT's runtime, with memory by NVIDIA's `cuda-bindings`.

As small as it can be: each call takes its memory and gives it back, since a comparison makes a handful of calls.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.plans.builder import PlanProblem, load_plugins
from export.plans.graph import INPUT


class PlanRun:
    """A plan that is loaded, called with pictures.

        with PlanRun(trt, path) as run:
            alphas = run(images)["alphas"]

    Args:
        trt: TensorRT's module.
        plan: the serialized plan.

    Raises:
        PlanProblem: TensorRT does not load it, or CUDA fails.
    """

    def __init__(self, trt: Any, plan: Path) -> None:
        self._trt = trt
        self._cuda = load_cuda()
        self._stream = checked(self._cuda, self._cuda.cudaStreamCreate())
        self._logger = trt.Logger(trt.Logger.ERROR)
        load_plugins(trt, self._logger)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if self._engine is None:
            raise PlanProblem(f"TensorRT does not load the plan that it just built, {plan}")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise PlanProblem(f"the GPU has too little memory to run {plan}; other programs on it take of it too")

    def __call__(self, images: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """Run a batch.

        Args:
            images: uint8 [N, side, side, 3], N within the plan's range.

        Returns:
            The outputs by name, each with N in front.

        Raises:
            PlanProblem: TensorRT or CUDA fails.
        """
        images, cuda, context = np.ascontiguousarray(images), self._cuda, self._context
        if not context.set_input_shape(INPUT, images.shape):
            raise PlanProblem(f"the plan does not take pictures of shape {images.shape}")
        names = [self._engine.get_tensor_name(place) for place in range(self._engine.num_io_tensors)]
        outputs = {
            name: np.empty(tuple(context.get_tensor_shape(name)), self._trt.nptype(self._engine.get_tensor_dtype(name)))
            for name in names
            if name != INPUT
        }
        memory: dict[str, int] = {}
        to_gpu, to_host = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice, cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        try:
            for name, array in {INPUT: images, **outputs}.items():
                memory[name] = checked(cuda, cuda.cudaMalloc(array.nbytes))
                context.set_tensor_address(name, memory[name])
            checked(cuda, cuda.cudaMemcpyAsync(memory[INPUT], images.ctypes.data, images.nbytes, to_gpu, self._stream))
            if not context.execute_async_v3(int(self._stream)):
                raise PlanProblem("TensorRT could not run the plan; the GPU may have too little memory")
            for name, array in outputs.items():
                checked(
                    cuda, cuda.cudaMemcpyAsync(array.ctypes.data, memory[name], array.nbytes, to_host, self._stream)
                )
            checked(cuda, cuda.cudaStreamSynchronize(self._stream))
        finally:
            for pointer in memory.values():
                cuda.cudaFree(pointer)
        return outputs

    def __enter__(self) -> "PlanRun":
        return self

    def __exit__(self, *_error: object) -> None:
        # In this order: the context lives in the engine, and the engine in the runtime.
        del self._context, self._engine, self._runtime
        self._cuda.cudaStreamDestroy(self._stream)


def load_cuda() -> Any:
    """CUDA's runtime as a Python module.

    Raises:
        PlanProblem: `cuda-bindings` is not installed, or does not load.
    """
    try:
        return import_module("cuda.bindings.runtime")
    except (ImportError, OSError, RuntimeError) as error:
        raise PlanProblem(
            f"running a plan needs the package cuda-bindings, which the extra 'plan' installs ({error})"
        ) from None


def cuda_version() -> str | None:
    """Version of CUDA's runtime, such as "13.0"; None where there is none."""
    try:
        cuda = load_cuda()
        number = int(checked(cuda, cuda.cudaRuntimeGetVersion()))
    except PlanProblem:
        return None
    return f"{number // 1000}.{number % 1000 // 10}"


def checked(cuda: Any, answer: tuple[Any, ...]) -> Any:
    """What a function of CUDA gave beside its status.

    Raises:
        PlanProblem: the status is not success.
    """
    status, *values = answer
    if status != cuda.cudaError_t.cudaSuccess:
        _, words = cuda.cudaGetErrorString(status)
        raise PlanProblem(f"CUDA failed: {words.decode()} ({status.name})")
    return values[0] if values else None
