"""A Hugging Face Space with a Gradio app: upload, call, wait for the event, fetch the file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Unpack
from urllib.parse import quote

from cutaway.contract import limits
from cutaway.contract.errors import invalid_option
from cutaway.fallback.base import Provider, Settings
from cutaway.fallback.errors import invalid, json_of
from cutaway.fallback.model import Model, by_name
from cutaway.fallback.requests import Call, media_type

if TYPE_CHECKING:
    import httpx

_SPACE = re.compile(r"[\w.-]+/[\w.-]+")
_EVENT_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_FINAL = re.compile(rb"(?:^|\n)event: ?(complete|error)\r?\ndata: ?([^\n]*)\n")

MAX_EVENTS_BYTES = limits.HOSTED_MAX_ANSWER_BYTES // 8  # they have addresses; previews as base64 stay below this


class Space(Provider):
    """Mattes (and upscaling, where you name a function for it) by a Gradio app on a Hugging Face Space.

    - *Token*: none. For a private Space of your own pass `token`, which its code gets; the environment's is not used.
    - *Cost*: none for public Spaces, and no availability promised: they sleep, queue and change without notice.
    - *Licence*: the app's and its model's own, see the Space's page. Pass a :class:`Model` for `model` to record it.

    >>> Space()                                             # not-lain/background-removal
    >>> Space("owner/upscaler", upscale_fn="predict", fn=None)
    >>> Space(base_url="http://localhost:7860", fn="image")
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
        output_index: int = 0,
        upscale_fn: str | None = None,
        upscale_arguments: Sequence[Any] = ("{scale}",),
        model: Model | None = None,
        api_prefix: str = "/gradio_api",
        **settings: Unpack[Settings],
    ) -> None:
        """Set up; nothing is sent yet.

        Args:
            space: "owner/name"; only a label where `base_url` is given.
            fn, upscale_fn: the app's functions that matte and upscale, by their API names; None where it has none.
            arguments, upscale_arguments: theirs after the picture; ``"{scale}"`` is replaced by the factor.
            output_index: index of the file where the function returns several (a slider's before and after).
            model: the app's model and licence.
            api_prefix: "" for Gradio 4.
            settings: see :class:`cutaway.fallback.base.Provider`; `timeout_s` is 60 by default.
        """
        if not _SPACE.fullmatch(space):
            raise invalid_option("space", space, "owner/name")
        host = re.sub(r"[^a-z0-9]+", "-", space.lower()).strip("-")
        settings["base_url"] = settings.get("base_url") or f"https://{host}.hf.space"
        named = by_name(model or Model(space))
        named = Model(space, "the Space's own: see its page") if model is None and named.commercial else named
        super().__init__(named, dict.fromkeys(limits.UPSCALE_SCALES if upscale_fn else (), named), **settings)
        self.mattes = fn is not None
        self._functions = (fn, list(arguments)), (upscale_fn, list(upscale_arguments))
        self._output_index = output_index
        self._prefix = api_prefix.rstrip("/")

    async def _serve(self, call: Call, data: bytes, kind: str) -> bytes:
        function, given = self._functions[call.scale > 1]
        if function is None:
            raise invalid_option("fn", None, "the API name of a function that mattes")
        arguments = [call.scale if argument == "{scale}" else argument for argument in given]
        name = f"picture.{kind.partition('/')[2]}"
        paths = _parse(await call.send("POST", f"{self._prefix}/upload", files={"files": (name, data, kind)}))
        if not isinstance(paths, list) or not paths or not isinstance(paths[0], str):
            raise invalid(self.name, "no path for the uploaded picture")
        file = {"path": paths[0], "orig_name": name, "mime_type": kind, "meta": {"_type": "gradio.FileData"}}
        route, form = f"{self._prefix}/call/{quote(function.strip('/'))}", {"data": [file, *arguments]}
        # A call that may have been accepted is not repeated: it would queue behind itself.
        called = _parse(await call.send("POST", route, json=form, repeatable=False))
        call.details["event_id"] = event_id = str(called.get("event_id") if isinstance(called, dict) else "")
        if not _EVENT_ID.fullmatch(event_id):
            raise invalid(self.name, "no event to wait for")
        url, headers, ended = f"{route}/{event_id}", {"Accept": "text/event-stream"}, lambda it: bool(_FINAL.search(it))
        wait = {"headers": headers, "max_bytes": MAX_EVENTS_BYTES, "until": ended}
        events = await call.send("GET", url, repeatable=False, **wait)
        if media_type(events) != "text/event-stream":
            raise invalid(self.name, f"{media_type(events)!r} instead of events")
        return await call.fetch(self._output(events.content))

    def _output(self, events: bytes) -> str:
        """The address of the file that the final event names; an error where the function failed."""
        final = _FINAL.search(events)
        try:
            result = json.loads(final[2]) if final else None
        except (ValueError, RecursionError):
            result = None
        if final and final[1] == b"error":
            raise self._model_failure(result.get("error") if isinstance(result, dict) else result)
        if not isinstance(result, list):
            raise invalid(self.name, "a stream of events that ends without a result")
        files = list(self._files(result))
        if not -len(files) <= self._output_index < len(files):
            raise invalid(self.name, "a result without a file")
        return files[self._output_index]

    def _files(self, item: Any, depth: int = 0) -> Iterator[str]:
        """Addresses of the files in a result, which may be nested in lists and in components' forms."""
        form = item if isinstance(item, dict) else {"url": item}
        url, path = form.get("url"), form.get("path")
        if isinstance(url, str) and url.startswith(("http", "data:") if form is item else "data:image/"):
            yield url
        elif isinstance(path, str):
            yield f"{self.base_url}{self._prefix}/file={quote(path)}"
        elif isinstance(item, (dict, list)) and depth < 8:
            for each in item.values() if isinstance(item, dict) else item:
                yield from self._files(each, depth + 1)


def _parse(response: httpx.Response) -> Any:
    """The JSON; a Space that sleeps or builds answers with an HTML page."""
    if media_type(response) != "application/json":
        raise invalid(Space.name, f"{media_type(response) or 'unknown'!r} instead of JSON: it may be asleep")
    return json_of(response)
