"""Pictures: a folder, a bucket, or a list of paths and URLs; named, and read."""

from __future__ import annotations

import functools
import io
import posixpath
from collections.abc import Sequence
from pathlib import Path

import obstore
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from cutaway.cli.files import EXTENSIONS
from cutaway.contract.headers import check_size
from cutaway.contract.limits import INPUT_LIMITS
from obstore.store import LocalStore, ObjectStore, from_url

LISTS = (".csv", ".parquet")
WEB = ("http://", "https://")
EACH_AN_ADDRESS = ""
"""The root of a list's pictures, each of which is named by its whole path or URL."""


class SourceProblem(ValueError):
    """There are no pictures where they should be; the message says what to do."""


@functools.lru_cache(maxsize=64)
def open_store(root: str) -> ObjectStore:
    """The store at a folder, or at a URL such as "s3://bucket/prefix"; credentials come from the environment."""
    if root.startswith(WEB):
        return from_url(root, client_options={"allow_http": True})
    return from_url(root) if "://" in root else LocalStore(prefix=root)


def find(source: str, output: str, column: str) -> tuple[str, list[str]]:
    """The pictures that a folder, a bucket or a list names: what names are relative to, and names in order, each once.

    The former is a folder (absolute) or a URL; of a list `EACH_AN_ADDRESS`. In names "/" separates folders.

    Args:
        source: a folder or a URL with all below it, or a list: a .csv or .parquet file, or a folder of .parquet files.
        output: where results go; pictures in there are none to be cut.
        column: the list's column of paths and URLs; paths are relative to the list's folder.

    Raises:
        SourceProblem: nothing is found.
    """
    where = source.rstrip("/") if "://" in source else str(Path(source).resolve())
    if where.lower().endswith(LISTS):
        root, names = EACH_AN_ADDRESS, _listed(where, column)
    elif "://" in where:
        found = [entry["path"] for batch in obstore.list(open_store(where)) for entry in batch]
        root, names = where, _pictures(found, _below(where, output))
    elif Path(where).is_dir():
        # Not obstore's list, which ends at a name that is no UTF-8; reading such a picture fails, and is recorded.
        files = [path.relative_to(where).as_posix() for path in Path(where).rglob("*") if path.is_file()]
        found = [name.encode(errors="backslashreplace").decode() for name in files]
        root, names = where, _pictures(found, _below(where, output))
    else:
        raise SourceProblem(f"{source} is no folder; of a single picture: cutaway cut {source}")
    if not names:
        raise SourceProblem(f"there is no picture in {source} ({', '.join(EXTENSIONS)})")
    return root, names


def _below(where: str, output: str) -> str:
    """The output as a prefix of names below a source; one that no name has where it lies elsewhere."""
    if output == where:
        raise SourceProblem(f"{where} is searched for pictures: name another folder for the results with -o")
    return output.removeprefix(f"{where}/") + "/" if output.startswith(f"{where}/") else "\0"


def _pictures(names: Sequence[str], without: str) -> list[str]:
    return sorted(
        name
        for name in names
        if posixpath.splitext(name)[1].lower() in EXTENSIONS
        and not name.startswith(without)
        # Hidden ones are such as the ._photo.jpg that macOS leaves.
        and not any(part.startswith(".") for part in name.split("/"))
    )


def _listed(where: str, column: str) -> list[str]:
    folder, name = posixpath.split(where)
    store = open_store(folder)
    parts = [entry["path"] for batch in obstore.list(store, prefix=name) for entry in batch]
    files = [part for part in sorted(parts) if part.lower().endswith(LISTS)] or [name]
    rows: list[str] = []
    for file in files:
        try:
            data = io.BytesIO(obstore.get(store, file).bytes())
            table: pa.Table = (pa.csv.read_csv if file.lower().endswith(".csv") else pa.parquet.read_table)(data)
        except FileNotFoundError:
            raise SourceProblem(f"the list {where} is not there") from None
        except pa.ArrowInvalid as error:
            raise SourceProblem(f"the list {where} cannot be read: {error}") from None
        if column not in table.column_names:
            raise SourceProblem(f"the list {where} has no column {column!r}, only {', '.join(table.column_names)}")
        rows += [str(row) for row in table.column(column).to_pylist() if row]
    return list(dict.fromkeys(row if "://" in row else _absolute(folder, row) for row in rows))


def _absolute(folder: str, path: str) -> str:
    """A path relative to a folder or URL: of the latter normpath would drop one of two slashes."""
    scheme, separator, rest = folder.rpartition("://")
    return scheme + separator + posixpath.normpath(posixpath.join(rest, path))


def read(root: str, name: str) -> bytes:
    """The file of a picture.

    Raises:
        FileTooLarge: it is over the limit; nothing is read.
        OSError, obstore.exceptions.BaseError: it cannot be read.
    """
    if root == EACH_AN_ADDRESS:
        scheme, separator, rest = name.partition("://")
        bucket, _, key = rest.partition("/")
        if name.startswith(WEB):  # whole, because of a query
            root, name = name, ""
        elif separator:
            root, name = f"{scheme}://{bucket}", key
        else:
            root, name = "/", name.lstrip("/")
    try:
        found = obstore.get(open_store(root), name)
    except ValueError as error:  # of the name: control characters, "..", what is no URL
        raise FileNotFoundError(str(error)) from None
    check_size(found.meta["size"], INPUT_LIMITS.max_file_bytes)
    return bytes(found.bytes())
