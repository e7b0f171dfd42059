"""A Hugging Face Space with a Gradio app: upload, call, wait for the event, fetch the file."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote

from cutaway.contract import limits
from cutaway.contract.errors import InvalidOption
from cutaway.providers.answers import decode_base64
from cutaway.providers.base import MAX_JSON_BYTES, Call, Provider
from cutaway.providers.model import Model, by_name
from cutaway.providers.steps import Response, Steps
from cutaway.resilience import RetryPolicy

if TYPE_CHECKING:
    import httpx

_SPACE = re.compile(r"[\w.-]+/[\w.-]+")
_EVENT_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_FINAL = re.compile(rb"(?:^|\n)event: ?(?:complete|error)\r?\ndata:[^\n]*\n")

MAX_EVENTS_BYTES = limits.HOSTED_MAX_ANSWER_BYTES // 8
"""Events carry addresses, not pictures; apps that stream previews as base64 stay below this."""


class Space(Provider):
    """Mattes (and upscaling, where you name a function for it) by a Gradio app on a Hugging Face Space.

    - *Token*: none. For a private Space of your own pass `token`; the environment's is not taken, since a Space's
      code is somebody else's and would see it.
    - *Cost*: none for public Spaces, which come without any promise: they sleep, queue and change without notice.
    - *Licence*: the app's and its model's own, see the Space's page. Pass a :class:`Model` for `model` to record it.

    >>> Space()                                             # not-lain/background-removal
    >>> Space("owner/upscaler", upscale_fn="predict", fn=None)
    >>> Space(base_url="http://localhost:7860", fn="image")
    """

    name: ClassVar[str] = "space"
    tier: ClassVar[int] = 4
    cost: ClassVar[str] = "none, and no promise"

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
        base_url: str | None = None,
        token: str | None = None,
        timeout_s: float | None = None,
        accept_noncommercial: bool = False,
        retry: RetryPolicy | None = None,
        transport: httpx.BaseTransport | None = None,
        async_transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Set up; nothing is sent yet.

        Args:
            space: "owner/name"; only a label where `base_url` is given.
            fn: the app's function that mattes, by its API name; None where it has none.
            arguments: what the function takes after the picture.
            output_index: which file to take where the function answers with several (a slider's before and after).
            upscale_fn: the function that upscales; None for none.
            upscale_arguments: what it takes after the picture; ``"{scale}"`` stands for the factor.
            model: what the app runs and under which licence.
            api_prefix: "" for Gradio 4.
            base_url: the app's address; by default the Space's own.
            token: for a private Space; whoever runs the Space can read it.
            timeout_s: seconds for one call; 60 by default.
            accept_noncommercial: you may use weights that are not for commercial use.
            retry: how often failed requests are repeated.
            transport, async_transport: httpx transports, for a proxy or a test.

        Raises:
            LicenceNotAccepted: `model` says that it is not for commercial use, or the name of the Space does.
            InvalidOption: a name or an address that is none.
        """
        if not _SPACE.fullmatch(space):
            raise InvalidOption(
                f"{space[:100]!r} names no Space: allowed is owner/name.",
                details={"name": "space", "value": space[:100], "allowed": "owner/name"},
            )
        super().__init__(
            base_url=base_url or f"https://{re.sub(r'[^a-z0-9]+', '-', space.lower()).strip('-')}.hf.space",
            model=_known(space, model),
            token=token,
            timeout_s=timeout_s,
            accept_noncommercial=accept_noncommercial,
            retry=retry,
            transport=transport,
            async_transport=async_transport,
        )
        self._fn = fn
        self._arguments = list(arguments)
        self._output_index = output_index
        self._upscale_fn = upscale_fn
        self._upscale_arguments = list(upscale_arguments)
        self._prefix = api_prefix.rstrip("/")

        if upscale_fn:
            self._take_upscalers(dict.fromkeys(limits.UPSCALE_SCALES, self.model))

    @property
    def mattes(self) -> bool:
        return self._fn is not None

    def _matte_steps(self, call: Call, data: bytes, media_type: str) -> Steps[bytes]:
        if self._fn is None:
            raise InvalidOption(
                "This Space was set up without a function that mattes.",
                details={"name": "fn", "value": None, "allowed": "the API name of a function"},
            )
        return (yield from self._call_function(call, self._fn, self._arguments, data, media_type))

    def _upscale_steps(self, call: Call, data: bytes, media_type: str) -> Steps[bytes]:
        arguments = [call.scale if argument == "{scale}" else argument for argument in self._upscale_arguments]
        return (yield from self._call_function(call, self._upscale_fn or "", arguments, data, media_type))

    def _call_function(
        self, call: Call, function: str, arguments: list[Any], data: bytes, media_type: str
    ) -> Steps[bytes]:
        name = f"picture.{media_type.partition('/')[2]}"
        path = yield from self._upload(call, name, data, media_type)
        file = {"path": path, "orig_name": name, "mime_type": media_type, "meta": {"_type": "gradio.FileData"}}
        route = f"{self._prefix}/call/{quote(function.strip('/'))}"
        # A call that may have been taken is not repeated: it would wait in the queue behind itself.
        request = self._request(call, "POST", route, form={"data": [file, *arguments]}, max_bytes=MAX_JSON_BYTES)
        called = self._json((yield from self._send(call, request, repeatable=False)))
        event_id = called.get("event_id") if isinstance(called, dict) else None
        if not isinstance(event_id, str) or not _EVENT_ID.fullmatch(event_id):
            raise self._invalid("no event to wait for")
        call.details["event_id"] = event_id
        events = yield from self._send(
            call,
            self._request(
                call,
                "GET",
                f"{route}/{event_id}",
                headers={"Accept": "text/event-stream"},
                max_bytes=MAX_EVENTS_BYTES,
                until=lambda sofar: _FINAL.search(sofar) is not None,
            ),
            repeatable=False,
        )
        if events.media_type != "text/event-stream":
            raise self._invalid(f"{events.media_type[:50]!r} instead of events")
        output = self._output(self._completed(events.body))
        return (
            decode_base64(output, self.name) if output.startswith("data:") else (yield from self._fetch(call, output))
        )

    def _upload(self, call: Call, name: str, data: bytes, media_type: str) -> Steps[str]:
        boundary = f"cutaway-{secrets.token_hex(16)}"
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
            f"Content-Type: {media_type}\r\n\r\n"
        )
        body = head.encode() + data + f"\r\n--{boundary}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        request = self._request(
            call, "POST", f"{self._prefix}/upload", headers=headers, body=body, max_bytes=MAX_JSON_BYTES
        )
        uploaded = self._json((yield from self._send(call, request)))
        if not isinstance(uploaded, list) or not uploaded or not isinstance(uploaded[0], str):
            raise self._invalid("no path for the uploaded picture")
        return uploaded[0]

    def _json(self, response: Response) -> Any:
        """JSON; a Space that sleeps or builds answers every address with a page."""
        if response.media_type != "application/json":
            raise self._invalid(f"{response.media_type[:50] or 'unknown'!r} instead of JSON: it may be asleep")
        return response.json()

    def _completed(self, stream: bytes) -> list[Any]:
        """The data of the final event.

        Raises:
            CutawayError: the function failed, or the stream ended without a result.
        """
        for event, data in _events(stream):
            if event == "error":
                said = data.get("error") if isinstance(data, dict) else data
                raise self._model_failure(said)
            if event == "complete" and isinstance(data, list):
                return data
        raise self._invalid("a stream of events that ends without a result")

    def _output(self, data: list[Any]) -> str:
        files = [address for item in data for address in self._files(item)]
        if not -len(files) <= self._output_index < len(files):
            raise self._invalid("a result without a file")
        return files[self._output_index]

    def _files(self, item: Any, depth: int = 0) -> Iterator[str]:
        """Addresses of the files in a result, which may be nested in lists and in components' forms."""
        if depth > 8:
            return
        if isinstance(item, list):
            for inner in item:
                yield from self._files(inner, depth + 1)
        elif isinstance(item, dict):
            url, path = item.get("url"), item.get("path")
            if isinstance(url, str) and url.startswith(("http://", "https://", "data:")):
                yield url
            elif isinstance(path, str):
                yield f"{self.base_url}{self._prefix}/file={quote(path)}"
            else:
                for inner in item.values():
                    yield from self._files(inner, depth + 1)
        elif isinstance(item, str) and item.startswith("data:image/"):
            yield item


def _known(space: str, model: Model | None) -> Model:
    if model is not None:
        return by_name(model)
    named = by_name(Model(space))
    return named if not named.commercial else Model(space, "the Space's own: see its page")


def _events(stream: bytes) -> Iterator[tuple[str, Any]]:
    """Name and JSON data of each server-sent event; data that is no JSON becomes None."""
    text = stream.decode("utf-8", "replace").replace("\r\n", "\n")
    for block in text.split("\n\n"):
        fields: dict[str, list[str]] = {}
        for line in block.split("\n"):
            name, _, value = line.partition(":")
            fields.setdefault(name, []).append(value.removeprefix(" "))
        if "event" in fields:
            try:
                data = json.loads("\n".join(fields.get("data", [])))
            except (ValueError, RecursionError):
                data = None
            yield fields["event"][-1], data
