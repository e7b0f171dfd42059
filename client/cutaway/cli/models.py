"""``cutaway models``."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from cutaway.cli.codes import OK, UNAVAILABLE
from cutaway.cli.connect import open_client, urls
from cutaway.cli.talking import error_form, readable, say, say_json
from cutaway.contract.errors import CutawayError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cutaway.transports.base import ModelInfo, TensorInfo

HEADS = ("model", "version", "state", "platform")


def run(given: argparse.Namespace) -> int:
    """Ask each server; returns OK where all answer and all models are ready."""
    code = OK
    several = urls(given)
    for place, url in enumerate(several):
        given.url = [url]
        with open_client(given) as client:
            try:
                models = client.models()
            except CutawayError as error:
                code = UNAVAILABLE
                if given.json:
                    say_json({"url": url, "models": [], "error": error_form(error)})
                say(f"{url}: {readable(error)}", sys.stderr)
                continue
        if not all(model.ready for model in models):
            code = UNAVAILABLE
        if given.json:
            say_json({"url": url, "models": [_form(model) for model in models], "error": None})
            continue
        if len(several) > 1:
            if place:
                say("", sys.stdout)
            say(url, sys.stdout)
        for line in _table(models):
            say(line, sys.stdout)
    return code


def _table(models: Sequence[ModelInfo]) -> list[str]:
    rows = [(model.name, ", ".join(model.versions), model.state, model.platform) for model in models]
    widths = [max(map(len, column)) for column in zip(HEADS, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()

    lines = [line(HEADS)]
    for row, model in zip(rows, models, strict=True):
        lines.append(line(row))
        lines += [f"  takes  {_words(each)}" for each in model.inputs]
        lines += [f"  gives  {_words(each)}" for each in model.outputs]
    return lines


def _words(tensor: TensorInfo) -> str:
    shape = "×".join("?" if side < 0 else str(side) for side in tensor.shape)
    return f"{tensor.name} {tensor.datatype} {shape}".rstrip()


def _form(model: ModelInfo) -> dict[str, Any]:
    return {
        "name": model.name,
        "versions": list(model.versions),
        "state": model.state,
        "platform": model.platform,
        "inputs": [_tensor(each) for each in model.inputs],
        "outputs": [_tensor(each) for each in model.outputs],
    }


def _tensor(tensor: TensorInfo) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
