"""``cutaway health`` and ``models``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

import cutaway
from cutaway.cli import options
from cutaway.cli.batch import error_form, run
from cutaway.cli.codes import OK, UNAVAILABLE
from cutaway.cli.console import reason, say, say_json


@options.command(options.JSON, *options.server())
def health(context: click.Context, /, **_: Any) -> int:
    """Send a small picture through each server's pipeline."""
    return run(_health(context))


async def _health(context: click.Context) -> int:
    async with options.open_client(context) as client:
        found = await client.health()
    each = found.endpoints or (found,)
    for one in each:
        if context.params["json"]:
            names = ("url", "ok", "server_ready", "model_ready", "round_trip_ms", "profile", "device")
            form = {name: getattr(one, name) for name in names}
            say_json({**form, "error": error_form(one.error) if one.error else None})
            continue
        say(f"server    {one.url} is {'ready' if one.server_ready else 'not ready'}")
        say(f"pipeline  {'ready' if one.model_ready else 'not ready'}")
        if one.round_trip_ms is not None:
            say(f"picture   came back in {one.round_trip_ms:.0f} ms, by {one.profile} on {one.device}")
        if one.error is not None:
            say(reason(one.error), err=True)
    working = sum(one.ok for one in each)
    if len(each) > 1 and not context.params["json"]:
        say(f"{working} of {len(each)} servers work", err=True)
    return OK if working == len(each) else UNAVAILABLE


@options.command(options.JSON, *options.server())
def models(context: click.Context, /, urls: list[str], **_: Any) -> int:
    """List each server's models, and what they take and give."""
    return max([run(_models(context, url)) for url in urls])


async def _models(context: click.Context, url: str) -> int:
    found: tuple[cutaway.ModelInfo, ...] = ()
    error = None
    try:
        async with options.open_client(context, urls=[url]) as client:
            found = await client.models()
    except cutaway.CutawayError as failure:
        error = error_form(failure)
        say(f"{url}: {reason(failure)}", err=True)
    as_json = context.params["json"]
    if as_json:
        say_json({"url": url, "models": [asdict(model) for model in found], "error": error})
    elif found:
        say(f"{'model':<24}  {'version':<7}  {'state':<11}  platform")
    for model in () if as_json else found:
        say(f"{model.name:<24}  {', '.join(model.versions):<7}  {model.state:<11}  {model.platform}")
        for verb, each in [("takes", each) for each in model.inputs] + [("gives", each) for each in model.outputs]:
            say(f"  {verb}  {each.name} {each.datatype} {'×'.join(map(str, each.shape)).replace('-1', '?')}".rstrip())
    return UNAVAILABLE if error or not all(model.ready for model in found) else OK
