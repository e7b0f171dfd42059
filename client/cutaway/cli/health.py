"""``cutaway health``."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from cutaway.cli.codes import OK, UNAVAILABLE
from cutaway.cli.connect import open_client
from cutaway.cli.talking import duration, error_form, readable, say, say_json

if TYPE_CHECKING:
    from cutaway.health import Health


def run(given: argparse.Namespace) -> int:
    """Ask each server; returns OK where all work."""
    with open_client(given) as client:
        health = client.health()
    each = health.endpoints or (health,)
    for place, one in enumerate(each):
        if given.json:
            say_json(_form(one))
            continue
        if place:
            say("", sys.stdout)
        _tell(one)
    working = sum(one.ok for one in each)
    if len(each) > 1 and not given.json:
        say(f"{working} of {len(each)} servers work", sys.stderr)
    return OK if working == len(each) else UNAVAILABLE


def _tell(health: Health) -> None:
    rows = {
        "server": f"{health.url} is {'ready' if health.server_ready else 'not ready'}",
        "pipeline": "ready" if health.model_ready else "not ready",
        "picture": "no answer" if health.round_trip_ms is None else f"came back in {duration(health.round_trip_ms)}",
        "profile": health.profile,
        "device": health.device,
    }
    for name, text in rows.items():
        if text:
            say(f"{name:<9} {text}", sys.stdout)
    if health.error is not None:
        say(readable(health.error), sys.stderr)


def _form(health: Health) -> dict[str, Any]:
    return {
        "url": health.url,
        "ok": health.ok,
        "server_ready": health.server_ready,
        "model_ready": health.model_ready,
        "round_trip_ms": health.round_trip_ms,
        "profile": health.profile,
        "device": health.device,
        "error": error_form(health.error) if health.error else None,
    }
