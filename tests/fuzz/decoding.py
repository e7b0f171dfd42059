"""Fuzz of the decoding path, with atheris (libFuzzer): any bytes give a picture of the promised form or an InputError.

    python -m tests.fuzz.decoding CORPUS -max_total_time=60

The seeds are the test suite's own files of every format, and `tests/fuzz/corpus.zip`. Every further argument goes to
libFuzzer. What is found is written to the working folder as `crash-…`.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parents[2]
for folder in ("model_repository/ensemble_pipeline/1", "client"):
    sys.path.insert(0, str(ROOT / folder))

with atheris.instrument_imports(include=["cutaway", "pipeline", "PIL"]):
    from cutaway.contract.errors import InputError
    from cutaway.contract.headers import check_picture
    from pipeline.decode import decode

from tests.fuzz.properties import check_decoded, seeds  # noqa: E402 (after what is instrumented)

MAX_PIXELS = 1_000_000
"""Larger pictures take long, and walk the same code."""


def one_input(data: bytes) -> None:
    try:
        if check_picture(data).pixels > MAX_PIXELS:
            return
        picture = decode(data)
    except InputError:
        return
    check_decoded(picture)


def main() -> None:
    warnings.simplefilter("ignore")  # of Pillow, about the files' faults; the server does not show them either
    arguments = sys.argv[1:]
    corpus = Path(arguments.pop(0)) if arguments and not arguments[0].startswith("-") else Path(".cache/fuzz")
    corpus.mkdir(parents=True, exist_ok=True)
    for name, data in seeds():
        (corpus / name).write_bytes(data)
    limits = ["-rss_limit_mb=2048", "-timeout=20", "-max_len=65536"]
    atheris.Setup([sys.argv[0], str(corpus), *limits, *arguments], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
