"""A plan on the GPU: TensorRT's runtime, with memory by NVIDIA's `cuda-bindings`.

As small as it can be: each call takes its memory and gives it back, since a comparison makes a handful of calls.
"""

from importlib import import_module
from pathlib import Path
from types import TracebackType
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
        self._stream = self._ask(self._cuda.cudaStreamCreate())
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
        images = np.ascontiguousarray(images)
        if not self._context.set_input_shape(INPUT, images.shape):
            raise PlanProblem(f"the plan does not take pictures of shape {images.shape}")
        names = [self._engine.get_tensor_name(place) for place in range(self._engine.num_io_tensors)]
        arrays = {name: images if name == INPUT else self._empty(name) for name in names}
        memory: dict[str, int] = {}
        kinds = self._cuda.cudaMemcpyKind
        try:
            for name, array in arrays.items():
                memory[name] = self._ask(self._cuda.cudaMalloc(array.nbytes))
                self._context.set_tensor_address(name, memory[name])
            self._copy(memory[INPUT], images.ctypes.data, images.nbytes, kinds.cudaMemcpyHostToDevice)
            if not self._context.execute_async_v3(int(self._stream)):
                raise PlanProblem("TensorRT could not run the plan; the GPU may have too little memory")
            for name, array in arrays.items():
                if name != INPUT:
                    self._copy(array.ctypes.data, memory[name], array.nbytes, kinds.cudaMemcpyDeviceToHost)
            self._ask(self._cuda.cudaStreamSynchronize(self._stream))
        finally:
            for pointer in memory.values():
                self._cuda.cudaFree(pointer)
        return {name: array for name, array in arrays.items() if name != INPUT}

    def _empty(self, name: str) -> NDArray[Any]:
        shape = tuple(self._context.get_tensor_shape(name))
        return np.empty(shape, self._trt.nptype(self._engine.get_tensor_dtype(name)))

    def _copy(self, target: int, source: int, count_bytes: int, kind: Any) -> None:
        self._ask(self._cuda.cudaMemcpyAsync(target, source, count_bytes, kind, self._stream))

    def _ask(self, answer: tuple[Any, ...]) -> Any:
        """What a function of CUDA gave beside its status.

        Raises:
            PlanProblem: the status is not success.
        """
        return checked(self._cuda, answer)

    def __enter__(self) -> "PlanRun":
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
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
    """What a function of CUDA gave beside its status; see `PlanRun._ask`."""
    status, *values = answer
    if status != cuda.cudaError_t.cudaSuccess:
        _, words = cuda.cudaGetErrorString(status)
        raise PlanProblem(f"CUDA failed: {words.decode()} ({status.name})")
    return values[0] if values else None
