"""Triton's entry point: the model is :mod:`stream.triton`; modules shared with ensemble_pipeline are in its folder.

Both folders are siblings in every model repository.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "ensemble_pipeline" / "1"))

from stream.triton import TritonPythonModel  # noqa: F401
