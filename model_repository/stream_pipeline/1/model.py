"""Where Triton enters: the model is :mod:`stream.triton`, and what both pipelines share lies beside ensemble_pipeline.

Both folders are siblings in every repository that is served, so the path of the one leads to the other.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "ensemble_pipeline" / "1"))

from stream.triton import TritonPythonModel  # noqa: F401
