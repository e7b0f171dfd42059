"""Read released checkpoints without running what is in them.

A `.pt` file is a zip archive of raw tensors and one pickle, and a pickle may name any function to be called
while it is read. Here it may not: tensors are rebuilt by this module's own code, a few containers are let
through, and every other class or function that the pickle names becomes an inert stand-in that only keeps
what it is given. Ultralytics need not be installed. (`torch.load` with `weights_only` refuses a pickled model; without
it, an archive that says to be TorchScript goes to `torch.jit.load`.)
"""

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from export import ExportError
from runtime.digest import sha256_of

#: SHA-256 of Ultralytics' YOLOv8n detector (COCO), 6,549,796 bytes.
YOLOV8N_SHA256 = "f59b3d833e2ff32e194b5bb8e08d211dc7c5bdf144b90d2c8412c47ccfc83b36"

_STORAGE_DTYPES: dict[str, torch.dtype] = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class WeightsError(ExportError, ValueError):
    """A weights file is not what it should be: wrong checksum, wrong form, or no tensors in it."""


class _StandIn:
    """Takes the place of a class or function that may not be called; remembers state, does nothing."""

    def __new__(cls, *_arguments: Any, **_options: Any) -> "_StandIn":
        return super().__new__(cls)

    def __init__(self, *_arguments: Any, **_options: Any) -> None:
        pass

    def __call__(self, *_arguments: Any, **_options: Any) -> "_StandIn":
        return _StandIn()

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)

    def __setitem__(self, _key: Any, _value: Any) -> None:
        pass

    def append(self, _value: Any) -> None:
        """Ignore the element of a list-like class."""

    def extend(self, _values: Any) -> None:
        """Ignore the elements of a list-like class."""

    def add(self, _value: Any) -> None:
        """Ignore the element of a set-like class."""


def _rebuild_tensor(
    storage: torch.Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_rest: Any
) -> torch.Tensor:
    return torch.as_strided(storage, size, stride, offset).clone()


def _rebuild_parameter(data: torch.Tensor, *_rest: Any) -> torch.Tensor:
    return data


_ALLOWED: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("builtins", "dict"): dict,
    ("builtins", "list"): list,
    ("torch", "Size"): tuple,
}


class _InertUnpickler(pickle.Unpickler):
    """Unpickler that resolves nothing outside `_ALLOWED` and reads storages straight from the archive."""

    def __init__(self, archive: zipfile.ZipFile, pickle_name: str) -> None:
        self._file = archive.open(pickle_name)
        super().__init__(self._file)
        self._archive = archive
        self._folder = pickle_name[: -len("data.pkl")]
        self._storages: dict[str, torch.Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[name]
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        return type(name, (_StandIn,), {"__module__": "stand_in." + module})

    def persistent_load(self, pid: Any) -> torch.Tensor:
        kind, dtype, key, _location, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise WeightsError(f"a storage of an unknown form: {kind!r}, {dtype!r}")
        if key not in self._storages:
            data = bytearray(self._archive.read(f"{self._folder}data/{key}"))
            storage = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            if storage.numel() < count:
                raise WeightsError(f"storage {key} holds {storage.numel()} of {count} numbers")
            self._storages[key] = storage
        return self._storages[key]


def read_checkpoint(path: Path, sha256: str | None = None) -> Any:
    """Read a zip-form `.pt` file; classes other than tensors and containers come back as stand-ins.

    Raises:
        FileNotFoundError: the file is not there.
        WeightsError: its SHA-256 differs from `sha256`, or it is not such an archive.
    """
    if sha256 is not None and (found := sha256_of(path)) != sha256:
        raise WeightsError(f"{path.name}: SHA-256 is {found}, expected {sha256}")
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(names) != 1:
                raise WeightsError(f"{path.name}: not a PyTorch archive (no single data.pkl)")
            return _InertUnpickler(archive, names[0]).load()
    except (zipfile.BadZipFile, pickle.UnpicklingError, KeyError) as error:
        raise WeightsError(f"{path.name}: not a readable PyTorch archive ({error})") from error


def module_state_dict(module: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """Collect parameters and buffers of a pickled module (a stand-in) under their usual dotted names."""
    tensors: dict[str, torch.Tensor] = {}
    state = vars(module)
    for group in ("_parameters", "_buffers"):
        for name, value in (state.get(group) or {}).items():
            if isinstance(value, torch.Tensor):
                tensors[prefix + name] = value
    for name, child in (state.get("_modules") or {}).items():
        if child is not None:
            tensors.update(module_state_dict(child, f"{prefix}{name}."))
    return tensors


def load_ultralytics(path: Path, sha256: str | None = None) -> dict[str, torch.Tensor]:
    """Read an Ultralytics `.pt` file as a float32 state dict (`model.0.conv.weight`, …).

    The averaged weights (`ema`) are taken where the file has them.

    Raises:
        FileNotFoundError: the file is not there.
        WeightsError: checksum or form are wrong.
    """
    checkpoint = read_checkpoint(path, sha256)
    module = (checkpoint.get("ema") or checkpoint.get("model")) if isinstance(checkpoint, dict) else None
    if not isinstance(module, _StandIn):
        raise WeightsError(f"{path.name}: holds no model")
    tensors = module_state_dict(module)
    if not tensors:
        raise WeightsError(f"{path.name}: its model holds no tensors")
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}


def load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a `.safetensors` file as a float32 state dict; released files hold float16 or float32.

    Raises:
        FileNotFoundError: the file is not there.
        WeightsError: it is no such file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise WeightsError(f"{path.name}: not a readable safetensors file ({error})") from error
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
