"""The client: a picture in, cut-outs back, or a typed error within the deadline."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import TYPE_CHECKING, Self, Unpack

from cutaway import loop
from cutaway.async_client import AsyncClient, ManyKeywords, Outcome
from cutaway.call import CallKeywords, ClientKeywords, CompositeKeywords, CutKeywords
from cutaway.contract.limits import DEFAULT_URL
from cutaway.inputs import ImageInput
from cutaway.loop import Cancel
from cutaway.result import CutResult, Detection, UpscaleResult
from cutaway.servers import Health
from cutaway.transports.base import ModelInfo

if TYPE_CHECKING:
    from cutaway.composite import CompositeResult, Onto


class Client:
    """Cuts people and objects out of pictures with Cutaway servers.

        with Client("grpc://localhost:8001") as client:
            result = client.cut("photo.jpg", subject="each", background="#00FF00")
            result.save("cutouts")

    One client serves any number of threads at once and keeps its connections; clients share nothing with one another.
    It connects when first used, may be used again after any error, and can be pickled: the copy has connections of its
    own. It is :class:`cutaway.AsyncClient` over an event loop in a thread.

    Args:
        urls: ``grpc://host:8001`` or ``http://host:8000``; ``grpcs://`` and ``https://`` with TLS. Calls go round robin
            over several equal servers; one that fails repeatedly is left out until a probe succeeds.
        timeout_s: seconds that a call may take in all, retries and fallback included; 30, or 60 with a fallback.
        token, api_key: sent as ``Authorization: Bearer …`` and ``X-API-Key``; ``$CUTAWAY_TOKEN`` and
            ``$CUTAWAY_API_KEY`` where None.
        headers: sent with every request, as HTTP headers or gRPC metadata.
        tls: own certificate authority, client certificate.
        retry: how often and after which waits failed requests are sent again; ``RetryPolicy(retries=0)`` for never.
        fallback: hosted models that are tried, in order, where none of your servers serves; they get the picture.
        cache: has answers of earlier calls with the same picture and options.
        observers: get the events of every call, such as :class:`cutaway.observers.OpenTelemetry`.
        strict: refuse a picture whose name or declared type disagrees with its bytes, instead of a warning.
        fit: send a smaller copy of a picture over the limits, and put the alpha that comes back onto the original at
            its full size, with a warning; a composite is of the copy. Off, such a picture is refused.
        max_decompression_ratio: in place of the table's, for servers whose operator raised it.
        transport: in place of the one for the URL's scheme; the client closes it.

    ``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY`` and ``NO_PROXY`` hold for gRPC and HTTP alike; loopback has no proxy.

    Raises:
        ValueError: a URL is no address, or a number makes no sense.
    """

    def __init__(self, urls: str | Sequence[str] = DEFAULT_URL, **given: Unpack[ClientKeywords]) -> None:
        self._client = AsyncClient(urls, **given)
        self.urls = self._client.urls

    def __repr__(self) -> str:
        return f"<cutaway.Client {', '.join(self.urls)}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End calls under way with RequestCancelled, and the connections. Calls after this raise RuntimeError."""
        loop.run(self._client.close())

    def cut(self, image: ImageInput, *, cancel: Cancel | None = None, **given: Unpack[CutKeywords]) -> CutResult:
        """Cut people, or whatever the picture shows, out of a picture.

        Args:
            image: a path, an encoded file's bytes (JPEG, PNG, WebP, BMP), a binary file object, a data URI, a PIL
                image, or an HWC uint8 [0, 255] array (RGB or RGBA).
            cancel: cancels the call from another thread, and its request at the server.
            media_type: the declared type of bytes, such as "image/png".
            timeout_s: seconds for the whole call; the client's where None.
            request_id: for the server's log, up to 128 printable ASCII characters; random where None.
            given: also the options, see :class:`cutaway.contract.options.OptionKeywords`. Lengths are in pixels.

        Raises:
            InputError: the picture or an option is invalid, or nobody is found (NoPersonDetected).
            ProcessingTimeout, RequestCancelled: the deadline is exceeded, or `cancel` was used.
            ServerUnavailable: no answer, no such model, or a full queue; NobodyServed where the fallback failed, too.
            InferenceError: a model failed, or the answer is malformed.
            OSError: the path cannot be read.
        """
        return loop.run(self._client.cut(image, **given), cancel)

    def cut_many(self, images: Iterable[ImageInput], **given: Unpack[ManyKeywords]) -> Generator[Outcome, None, None]:
        """Cut many pictures out, several at a time. A failure ends no others; leaving the loop cancels those in flight.

            for outcome in client.cut_many(Path("in").glob("*.jpg"), jobs=8):
                if outcome.ok:
                    outcome.result.save(f"out/{outcome.source.stem}.png")

        Args:
            images: pictures as :meth:`cut` takes them, read lazily in other threads; an iterator may block, or raise.
            jobs: pictures in flight at once; 4 where not given.
            ordered: outcomes in the order of the pictures instead of in that of completion.
            progress: called, in the client's thread, with the number of finished pictures and the total, or None.
            timeout_s: seconds for each picture.
            cancel: cancels pictures in flight, and ends the iteration.
            given: also the options, as in :meth:`cut`.

        Raises:
            ValueError: `jobs` is below 1.
            TypeError: `images` is one picture.
        """
        return loop.iterate(self._client.cut_many(images, **given))

    def detect(self, image: ImageInput, *, cancel: Cancel | None = None, **given: Unpack[CutKeywords]) -> Detection:
        """Find people without cutting them out: quicker, since no matte is computed.

        Arguments and errors are those of :meth:`cut`; hosted models do not detect, so that there is no fallback.
        """
        return loop.run(self._client.detect(image, **given), cancel)

    def composite(
        self, image: ImageInput, onto: Onto, *, cancel: Cancel | None = None, **given: Unpack[CompositeKeywords]
    ) -> CompositeResult:
        """Cut people out of a picture and put them onto something else.

        Args:
            image: as in :meth:`cut`.
            onto: a colour "#RRGGBB", another picture, or the blurred original: see :data:`cutaway.composite.Onto`.
            place, match_colour, output, quality, size_px: see :func:`cutaway.composite.compose`.
            given: also the options that choose people, and the other arguments of :meth:`cut`.

        Errors are those of :meth:`cut`; InputError also where `onto` is no picture.
        """
        return loop.run(self._client.composite(image, onto, **given), cancel)

    def upscale(
        self, image: ImageInput, scale: int = 2, *, cancel: Cancel | None = None, **given: Unpack[CallKeywords]
    ) -> UpscaleResult:
        """Enlarge a picture of at most 1440p by 2 or 4 along each side, through the fallback's hosted models.

        Errors are those of :meth:`cut`; InvalidOption for another scale, ServerUnavailable where no provider was named.
        """
        return loop.run(self._client.upscale(image, scale, **given), cancel)

    def health(self, *, timeout_s: float | None = None) -> Health:
        """Send a small picture through the pipeline: Triton reports a pipeline as ready whose process is dead.

        The server's errors are in the result and not raised.
        """
        return loop.run(self._client.health(timeout_s=timeout_s))

    def models(self, *, timeout_s: float | None = None) -> tuple[ModelInfo, ...]:
        """The pipeline and the models that it calls, of the first server that answers."""
        return loop.run(self._client.models(timeout_s=timeout_s))
