"""``cutaway health`` and ``models``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

import cutaway
from cutaway.cli import options
from cutaway.cli.batch import error_form, run
from cutaway.cli.codes import EPILOG, OK, UNAVAILABLE
from cutaway.cli.console import reason, say, say_json


@click.command(epilog=EPILOG)
@options.JSON
@options.server()
@click.pass_context
def health(context: click.Context, /, json: bool, **_: Any) -> int:
    """Send a small picture through each server's pipeline."""
    return run(_health(context, json))


async def _health(context: click.Context, json: bool) -> int:
    async with options.open_client(context) as client:
        found = await client.health()
    each = found.endpoints or (found,)
    for one in each:
        if json:
            names = ("url", "ok", "server_ready", "model_ready", "round_trip_ms", "profile", "device")
            error = error_form(one.error) if one.error else None
            say_json({**{name: getattr(one, name) for name in names}, "error": error})
            continue
        say(f"server    {one.url} is {'ready' if one.server_ready else 'not ready'}")
        say(f"pipeline  {'ready' if one.model_ready else 'not ready'}")
        say("picture   " + ("no answer" if one.round_trip_ms is None else f"came back in {one.round_trip_ms:.0f} ms"))
        for name in ("profile", "device") if one.ok else ():
            say(f"{name:<9} {getattr(one, name)}")
        if one.error is not None:
            say(reason(one.error), err=True)
    working = sum(one.ok for one in each)
    if len(each) > 1 and not json:
        say(f"{working} of {len(each)} servers work", err=True)
    return OK if working == len(each) else UNAVAILABLE


@click.command(epilog=EPILOG)
@options.JSON
@options.server()
@click.pass_context
def models(context: click.Context, /, urls: list[str], json: bool, **_: Any) -> int:
    """List the models that each server runs, with what goes in and comes out."""
    return max([run(_models(context, url, json)) for url in urls])


async def _models(context: click.Context, url: str, json: bool) -> int:
    found: tuple[cutaway.ModelInfo, ...] = ()
    error: cutaway.CutawayError | None = None
    async with options.open_client(context, urls=[url]) as client:
        try:
            found = await client.models()
        except cutaway.CutawayError as failure:
            error = failure
            say(f"{url}: {reason(error)}", err=True)
    if json:
        failed = error_form(error) if error else None
        say_json({"url": url, "models": [asdict(model) for model in found], "error": failed})
    elif found:
        say(f"{'model':<24}  {'version':<7}  {'state':<11}  platform")
    for model in () if json else found:
        say(f"{model.name:<24}  {', '.join(model.versions):<7}  {model.state:<11}  {model.platform}")
        for verb, tensors in (("takes", model.inputs), ("gives", model.outputs)):
            for each in tensors:
                shape = "×".join("?" if side < 0 else str(side) for side in each.shape)
                say(f"  {verb}  {each.name} {each.datatype} {shape}".rstrip())
    return UNAVAILABLE if error or not all(model.ready for model in found) else OK
