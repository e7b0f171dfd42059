"""The folder or bucket of a job: what it was begun with, its cut-outs, and its manifest."""

from __future__ import annotations

import hashlib
import io
import json
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import obstore
import pyarrow as pa
import pyarrow.parquet
from cutaway.contract.errors import ERRORS_BY_CODE, ImageBomb, InputError
from obstore.exceptions import AlreadyExistsError

from bulk.sources import EACH_AN_ADDRESS, open_store

OWN = "_cutaway"
IDENTITY, MANIFEST = f"{OWN}/job.json", f"{OWN}/manifest"
OK, FILE_ERROR = "OK", "FILE_ERROR"
SCHEMA = pa.schema(
    {
        "path": pa.string(),
        "code": pa.string(),
        "outputs": pa.list_(pa.string()),
        "sha256": pa.list_(pa.string()),
        "seconds": pa.float64(),
        "report": pa.string(),
        "message": pa.string(),
        "models": pa.string(),
    }
)
"""A row for each picture. `path`: its name, relative to the source, or the list's path or URL. `code`: OK, an error's,
or FILE_ERROR where its file cannot be read or a cut-out not be written. `outputs`, `sha256`: files and their digests,
one for each cut-out. `seconds`: from reading to encoding. `report` and `models` are JSON, the latter the digests of the
networks' files. A failure has a `message` instead of a report."""

MAX_NAME_BYTES = 200
"""Of a file or folder: with the ending and what a store appends while it writes, 255 is the most that systems take."""
AT_ONCE = 16
"""Parts of the manifest that are read at once: each is a round trip where they lie in a bucket."""


class JobProblem(ValueError):
    """The folder belongs to another job; the message says what to do."""


class Output:
    """Where a job's results go.

    Every file is put under its name in one step, and only where there is none: obstore writes a temporary file and
    links it, or asks a bucket for a conditional put. So a file is whole, and the first of two writers wins.

    Args:
        root: an absolute folder, which is made, or a URL.
    """

    def __init__(self, root: str) -> None:
        if "://" not in root:
            Path(root).mkdir(parents=True, exist_ok=True)
        self.root = root
        self._store = open_store(root)

    def claim(self, identity: Mapping[str, Any]) -> None:
        """Make the folder this job's, or see that it is.

        Raises:
            JobProblem: it belongs to a job with other pictures, options or networks, or to no job.
        """
        text = json.dumps(identity, indent=1, sort_keys=True)
        identity = json.loads(text)
        try:
            found = json.loads(bytes(obstore.get(self._store, IDENTITY).bytes()))
        except FileNotFoundError:
            if any(batch for batch in obstore.list(self._store, chunk_size=1)):
                raise JobProblem(f"{self.root} holds files of something else: name an empty folder with -o") from None
            if self._put(IDENTITY, text.encode()):
                return
            found = json.loads(bytes(obstore.get(self._store, IDENTITY).bytes()))
        differs = [name for name in identity if identity[name] != found.get(name)]
        if differs:
            changes = "; ".join(f"{name} was {found.get(name)}, is {identity[name]}" for name in differs)
            raise JobProblem(f"{self.root} belongs to another job: {changes}. Name another folder with -o")

    def done(self) -> dict[str, str]:
        """The code of each picture that needs no further try, by its name.

        Failures that are no picture's own (a file that could not be read, a GPU without memory) leave the manifest, so
        that their pictures are tried again and have one row.
        """
        found = [entry["path"] for batch in obstore.list(self._store, prefix=MANIFEST) for entry in batch]
        paths = [path for path in found if path.endswith(".parquet")]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return {name: code for part in pool.map(self._settled, paths) for name, code in part.items()}

    def _settled(self, path: str) -> dict[str, str]:
        table = pa.parquet.read_table(io.BytesIO(obstore.get(self._store, path).bytes()), schema=SCHEMA)
        codes = table.column("code").to_pylist()
        settled = [code == OK or _is_final(code) for code in codes]
        if not all(settled):
            table = table.filter(pa.array(settled))
            if len(table):
                obstore.put(self._store, path, _parquet(table))
            else:
                obstore.delete(self._store, path)
        return dict(zip(table.column("path").to_pylist(), table.column("code").to_pylist(), strict=True))

    def put(self, name: str, data: bytes) -> str:
        """Write a cut-out, unless it is there already; the SHA-256 of what is there then, in hexadecimal digits."""
        if not self._put(name, data):
            data = bytes(obstore.get(self._store, name).bytes())
        return hashlib.sha256(data).hexdigest()

    def put_part(self, part: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write a part of the manifest, unless it is there already."""
        self._put(f"{MANIFEST}/{part}.parquet", _parquet(pa.Table.from_pylist(list(rows), schema=SCHEMA)))

    def _put(self, name: str, data: bytes) -> bool:
        """Whether a file was written: false where one with this name is there."""
        try:
            obstore.put(self._store, name, data, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return False
        return True


def _is_final(code: str) -> bool:
    """Whether a picture with this error would have it again: not where the next run may allow a higher ratio."""
    error = ERRORS_BY_CODE.get(code, Exception)
    return issubclass(error, InputError) and not issubclass(error, ImageBomb)


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pa.parquet.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def digest_of(names: Sequence[str]) -> str:
    """What a part of the manifest is called by its pictures: a worker that does the same block again adds none."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:32]


def output_name(root: str, name: str, cutout_id: int | None, extension: str) -> str:
    """The name of a cut-out, which no other picture's has: the picture's whole name, and an ending.

    >>> output_name("/photos", "trip/a.jpg", None, "png"), output_name("/photos", "trip/a.jpg", 0, "png")
    ('trip/a.jpg.png', 'trip/a.jpg.0.png')

    Pictures of lists come from anywhere, and some names would be too long: those have a digest instead of folders.

    >>> output_name("", "s3://bucket/trip/a.jpg", None, "png")
    '5f/a.jpg-5f3cf67f4b05ad4b8e4e.png'
    """
    if root == EACH_AN_ADDRESS or any(len(part.encode()) > MAX_NAME_BYTES for part in name.split("/")):
        digest = hashlib.sha256(name.encode()).hexdigest()[:20]
        readable = re.sub(r"[^A-Za-z0-9._-]", "_", posixpath.basename(name))[-80:]
        name = f"{digest[:2]}/{readable}-{digest}"
    return f"{name}.{extension}" if cutout_id is None else f"{name}.{cutout_id}.{extension}"
