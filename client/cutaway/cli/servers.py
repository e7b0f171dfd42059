"""``cutaway health`` and ``models``."""

from __future__ import annotations

from typing import Any

import click

import cutaway
from cutaway.cli import options
from cutaway.cli.codes import OK, UNAVAILABLE
from cutaway.cli.console import error_form, reason, say, say_json


@options.command(options.JSON, *options.CLIENT)
async def health(context: click.Context, json: bool, **_: Any) -> int:
    """Send a small picture through each server's pipeline."""
    async with options.open_client(context) as client:
        found = await client.health()
    each = found.servers or (found,)
    for one in each:
        if json:
            names = ("url", "ok", "server_ready", "model_ready", "round_trip_ms", "profile", "device")
            error = error_form(one.error) if one.error else None
            say_json({name: getattr(one, name) for name in names} | {"error": error})
        elif one.error is None:
            say(f"{one.url}: a picture came back in {one.round_trip_ms:.0f} ms, by {one.profile} on {one.device}")
        else:
            say(f"{one.url}: {reason(one.error)}", err=True)
    return OK if all(one.ok for one in each) else UNAVAILABLE


@options.command(options.JSON, *options.CLIENT)
async def models(context: click.Context, urls: list[str], json: bool, **_: Any) -> int:
    """List each server's models."""
    code = OK
    for url in urls:
        found: tuple[cutaway.ModelInfo, ...] = ()
        error = None
        try:
            async with options.open_client(context, urls=[url]) as client:
                found = await client.models()
        except cutaway.CutawayError as failure:
            error = error_form(failure)
            say(f"{url}: {reason(failure)}", err=True)
        if json:
            say_json({"url": url, "models": found, "error": error})
        for model in () if json else found:
            say(f"{model.name:<24} {', '.join(model.versions):<8} {model.state}")
        code = UNAVAILABLE if error or not all(model.ready for model in found) else code
    return code
