"""Networks in ONNX Runtime outside of Triton, opened and kept as its model processes do."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from functools import cache
from types import ModuleType

from runtime.checks import RuntimeProblem
from runtime.compose import ONNX_MODEL
from runtime.process import ALLOCATOR

_MALLOPT = {"MALLOC_ARENA_MAX": -8, "MALLOC_MMAP_THRESHOLD_": -3, "MALLOC_TRIM_THRESHOLD_": -1}  # glibc's numbers


@cache
def onnx_model() -> ModuleType:
    """The module that runs networks in Triton. Its functions for ONNX Runtime need nothing of Triton's."""
    sys.modules.setdefault("triton_python_backend_utils", ModuleType("triton_python_backend_utils"))
    spec = importlib.util.spec_from_file_location("onnx_model", ONNX_MODEL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def keep_memory() -> None:
    """Let this process's allocator keep memory as the server's processes do; without, the networks take longer."""
    libc = ctypes.CDLL(None)
    for name, value in ALLOCATOR.items():
        if not libc.mallopt(_MALLOPT[name], int(value)):
            raise RuntimeProblem(f"glibc does not take {name}={value}")
