"""Bulk jobs: as many pictures as there are, cut out on Ray (``python -m bulk``).

    names of pictures ──► Ray Data: blocks of names ──► workers, one picture at a time each:
                                                        read → pipeline.run → write → a row of the manifest
                                                                   │ ▲
                                                  networks in the worker (CPU), or in actors
                                                  that batch across pictures and workers (GPU)

Names travel between processes; pictures are read and written by the worker that cuts them out.

`sources` finds and reads pictures, `output` is the folder of a job with its identity and manifest, `networks` opens
ONNX files, `worker` is what Ray Data runs, `job` runs it all, `cli` is the command.
"""

from __future__ import annotations

import sys
from pathlib import Path

# A worker on another node has the checkout as its working directory, and nothing installed from it.
for _folder in ("client", "model_repository/ensemble_pipeline/1"):
    _path = str(Path(__file__).resolve().parents[1] / _folder)
    if _path not in sys.path:
        sys.path.append(_path)
