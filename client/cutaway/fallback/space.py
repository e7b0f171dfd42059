"""A Hugging Face Space with a Gradio app: upload, call, wait for the event, fetch the file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Unpack
from urllib.parse import quote

import httpx

from cutaway.contract import limits
from cutaway.contract.errors import invalid_option
from cutaway.fallback.answers import invalid, parse_json
from cutaway.fallback.base import Model, Provider, ProviderKeywords, model_of
from cutaway.fallback.requests import Request, media_type

API = "/gradio_api"
MAX_EVENTS_BYTES = limits.HOSTED_MAX_ANSWER_BYTES // 8  # they have addresses; previews as base64 stay below this

_SPACE = re.compile(r"[\w.-]+/[\w.-]+")
_EVENT_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_FINAL = re.compile(rb"(?:^|\n)event: ?(complete|error)\r?\ndata: ?([^\n]*)\n")


class Space(Provider):
    """Mattes and upscaling by a Gradio 5 app on a Hugging Face Space. *Cost*: none, and no availability promised.
    *Licence*: the app's and its model's own. A private Space's code gets the `token` that is passed.

    Args:
        space: "owner/name"; only a label where `base_url` is given.
        fn: the API name of the app's function that takes a picture and `arguments` and mattes; None where it has none.
        upscale_fn: that of the one that takes a picture and a factor and upscales.
        model: the app's model and licence.
        keywords: see :class:`cutaway.providers.Provider`; `timeout_s` is 60 by default.
    """

    name = "space"
    tier = 4
    cost = "none, and no promise"
    delivery_hosts = ("hf.space",)

    def __init__(
        self,
        space: str = "not-lain/background-removal",
        *,
        fn: str | None = "png",
        arguments: Sequence[Any] = (),
        upscale_fn: str | None = None,
        model: Model | None = None,
        **keywords: Unpack[ProviderKeywords],
    ) -> None:
        if not _SPACE.fullmatch(space):
            raise invalid_option("space", space, "owner/name")
        host = re.sub(r"[^a-z0-9]+", "-", space.lower()).strip("-")
        keywords["base_url"] = keywords.get("base_url") or f"https://{host}.hf.space"
        named = model_of(model or space)
        super().__init__(named, dict.fromkeys(limits.UPSCALE_SCALES if upscale_fn else (), named), **keywords)
        self._functions, self.mattes, self._arguments = (fn, upscale_fn), fn is not None, list(arguments)

    async def _serve(self, request: Request, data: bytes, kind: str) -> bytes:
        upscales = request.scale > 1
        function, arguments = self._functions[upscales], [request.scale] if upscales else self._arguments
        if function is None:
            raise invalid_option("fn", None, "the API name of a function that mattes")
        name = f"picture.{kind.partition('/')[2]}"
        paths = _parse(await request.send("POST", f"{API}/upload", files={"files": (name, data, kind)}))
        if not isinstance(paths, list) or not paths or not isinstance(paths[0], str):
            raise invalid(self.name, "no path for the uploaded picture")
        file = {"path": paths[0], "orig_name": name, "mime_type": kind, "meta": {"_type": "gradio.FileData"}}
        route, form = f"{API}/call/{quote(function.strip('/'))}", {"data": [file, *arguments]}
        # A call that may have been accepted is not repeated: it would queue behind itself.
        called = _parse(await request.send("POST", route, json=form, repeatable=False))
        request.details["event_id"] = event_id = str(called.get("event_id") if isinstance(called, dict) else "")
        if not _EVENT_ID.fullmatch(event_id):
            raise invalid(self.name, "no event to wait for")
        wait = {"headers": {"Accept": "text/event-stream"}, "max_bytes": MAX_EVENTS_BYTES, "until": _FINAL.search}
        events = await request.send("GET", f"{route}/{event_id}", repeatable=False, **wait)
        if media_type(events) != "text/event-stream":
            raise invalid(self.name, f"{media_type(events)!r} instead of events")
        final = _FINAL.search(events.content)
        result = parse_json(final[2]) if final else None
        if final and final[1] == b"error":
            raise self._model_failure(result.get("error") if isinstance(result, dict) else result)
        if not isinstance(result, list):
            raise invalid(self.name, "a stream of events that ends without a result")
        if (address := self._file(result)) is None:
            raise invalid(self.name, "a result without a file")
        return await request.fetch(address)

    def _file(self, item: Any, depth: int = 0) -> str | None:
        """The address of the first file in a result, which may be nested in lists and in components' forms."""
        if isinstance(item, dict):
            url, path = item.get("url"), item.get("path")
            if isinstance(url, str) and url.startswith(("http", "data:")):
                return url
            if isinstance(path, str):
                return f"{self.base_url}{API}/file={quote(path)}"
        elif not isinstance(item, list):
            return item if isinstance(item, str) and item.startswith("data:image/") else None
        nested = item.values() if isinstance(item, dict) else item
        return next(filter(None, (self._file(each, depth + 1) for each in nested if depth < 8)), None)


def _parse(response: httpx.Response) -> Any:
    """The JSON; a Space that sleeps or builds answers with an HTML page."""
    if media_type(response) != "application/json":
        raise invalid(Space.name, f"{media_type(response) or 'unknown'!r} instead of JSON: it may be asleep")
    return parse_json(response.content)
