"""The client: a picture in, cut-outs back, or a typed error within the deadline."""

from __future__ import annotations

import math
import struct
import time
import uuid
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cutaway.errors import CutawayError, InferenceError, ServerUnavailable
from cutaway.inputs import encode
from cutaway.limits import INPUT_LIMITS, PROCESSING_TIMEOUT_S, InputLimits
from cutaway.options import parse_options, to_parameters
from cutaway.result import CUT_OUTPUTS, DETECTION_OUTPUTS, CutResult, Detection, read_cut, read_detection
from cutaway.transports.base import InferRequest, Transport, parse_address
from cutaway.transports.connection import Connection, open_transport

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from cutaway.inputs import ImageInput
    from cutaway.options import OptionKeywords
    from cutaway.wire import Tensor

DEFAULT_URL = "grpc://localhost:8001"
PIPELINE = "ensemble_pipeline"
MAX_REQUEST_ID_CHARS = 128


@dataclass(frozen=True)
class Health:
    """Whether a server works, from a picture that went through it.

    Attributes:
        url: the server asked.
        server_ready: the server says that it is ready.
        model_ready: the server says that the pipeline is ready; its process may be dead all the same.
        round_trip_ms: milliseconds of a small picture's way through the pipeline, or None where it did not come back.
        profile: the pair of models, such as "nano"; "" where nothing came back.
        device: what runs the models; "" where nothing came back.
        error: what went wrong, or None.
    """

    url: str
    server_ready: bool = False
    model_ready: bool = False
    round_trip_ms: float | None = None
    profile: str = ""
    device: str = ""
    error: CutawayError | None = None

    @property
    def ok(self) -> bool:
        return self.round_trip_ms is not None


class Client:
    """Cuts people and objects out of pictures with a Cutaway server.

        with Client("grpc://localhost:8001") as client:
            result = client.cut("photo.jpg", subject="each", background="#00FF00")
            result.save("cutouts")

    One client serves any number of threads at once and keeps its connections; clients share nothing with one another.
    It connects when first used and may be used again after any error.

    Args:
        url: ``grpc://host:8001`` or ``http://host:8000``; ``grpcs://`` and ``https://`` with TLS.
        timeout_s: seconds that a call may take in all, unless the call says otherwise.
        verify: decode pictures wholly before they are sent. Off, damage inside is found by the server, with the same
            error and less work here.
        max_decompression_ratio: takes the place of the table's, for servers whose operator raised it.
        transport: in place of what the URL's scheme says; the client closes it.

    Raises:
        ValueError: the URL is no address, or a number makes no sense.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout_s: float = PROCESSING_TIMEOUT_S,
        verify: bool = False,
        max_decompression_ratio: float | None = None,
        transport: Transport | None = None,
    ) -> None:
        address = parse_address(url)
        self.url = str(address)
        self.timeout_s = _checked_timeout(timeout_s)
        self.verify = verify
        self.limits: InputLimits = INPUT_LIMITS
        if max_decompression_ratio is not None:
            if not max_decompression_ratio > 0:
                raise ValueError("max_decompression_ratio has to be above 0")
            self.limits = replace(INPUT_LIMITS, max_decompression_ratio=max_decompression_ratio)
        self._transport = open_transport(Connection(address)) if transport is None else transport
        self._closed = False

    def __repr__(self) -> str:
        return f"<cutaway.Client {self.url}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connections. Calls after this raise RuntimeError."""
        self._closed = True
        self._transport.close()

    def cut(
        self,
        image: ImageInput,
        *,
        media_type: str | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
        **options: Unpack[OptionKeywords],
    ) -> CutResult:
        """Cut people, or whatever the picture shows, out of a picture.

        Args:
            image: a path, an encoded file's bytes (JPEG, PNG, WebP, BMP), a PIL image, or an HWC uint8 [0, 255] array
                (RGB or RGBA).
            media_type: what bytes are declared to be, such as "image/png"; a mismatch is refused.
            timeout_s: seconds for the whole call; the client's where None.
            request_id: for the server's log, up to 128 printable ASCII characters; made up where None.
            options: see :class:`cutaway.options.OptionKeywords`. Lengths are in pixels.

        Raises:
            InputError: the picture or an option is refused, mostly before anything is sent; NoPersonDetected where
                people were asked for and there are none.
            ProcessingTimeout: the seconds are over.
            ServerUnavailable: nobody answers, the model is not there, the queue is full.
            InferenceError: a model failed, or the answer makes no sense.
            OSError: the path cannot be read.
        """
        started = time.monotonic()
        request_id, outputs = self._infer(image, CUT_OUTPUTS, media_type, timeout_s, request_id, options)
        try:
            return read_cut(outputs, provider="triton", request_id=request_id, elapsed_ms=_ms_since(started))
        except InferenceError as error:
            error.request_id = request_id
            raise

    def detect(
        self,
        image: ImageInput,
        *,
        media_type: str | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
        **options: Unpack[OptionKeywords],
    ) -> Detection:
        """Find people without cutting them out: quicker, since no matte is computed.

        Arguments and errors are those of :meth:`cut`.
        """
        started = time.monotonic()
        request_id, outputs = self._infer(image, DETECTION_OUTPUTS, media_type, timeout_s, request_id, options)
        try:
            return read_detection(outputs, provider="triton", request_id=request_id, elapsed_ms=_ms_since(started))
        except InferenceError as error:
            error.request_id = request_id
            raise

    def health(self, *, timeout_s: float | None = None) -> Health:
        """Send a small picture through the pipeline: Triton calls a pipeline ready whose process is long dead.

        Never raises for what is wrong with the server; the answer tells.
        """
        self._check_open()
        ends_at = time.monotonic() + (self.timeout_s if timeout_s is None else _checked_timeout(timeout_s))
        health = Health(self.url)
        try:
            health = replace(health, server_ready=self._transport.server_ready(_left(ends_at)))
            health = replace(health, model_ready=self._transport.model_ready(PIPELINE, _left(ends_at)))
            if not health.server_ready or not health.model_ready:
                what = "The pipeline" if health.server_ready else "The server"
                return replace(health, error=ServerUnavailable(f"{what} at {self.url} is not ready."))
            result = self.cut(_canary(), subject="all", timeout_s=_left(ends_at))
        except CutawayError as error:
            return replace(health, error=error)
        return replace(
            health,
            round_trip_ms=result.elapsed_ms,
            profile=result.report.profile,
            device=result.report.device,
        )

    def _infer(
        self,
        image: ImageInput,
        outputs: tuple[str, ...],
        media_type: str | None,
        timeout_s: float | None,
        request_id: str | None,
        options: OptionKeywords,
    ) -> tuple[str, dict[str, Tensor]]:
        self._check_open()
        ends_at = time.monotonic() + (self.timeout_s if timeout_s is None else _checked_timeout(timeout_s))
        request_id = uuid.uuid4().hex if request_id is None else _checked_id(request_id)
        try:
            parse_options(options)
            picture = encode(image, media_type=media_type, limits=self.limits, verify=self.verify)
            request = InferRequest(
                model=PIPELINE,
                image=picture.data,
                outputs=outputs,
                parameters=to_parameters(options),
                request_id=request_id,
                timeout_s=_left(ends_at),
            )
            return request_id, self._transport.infer(request)
        except CutawayError as error:
            error.request_id = request_id
            raise

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the client is closed")


def _canary() -> bytes:
    """A 64×64 PNG with some texture: the smallest picture that is taken."""
    rows = b"".join(
        b"\0" + bytes((x * 4, y * 4, (x ^ y) * 4)[c] for x in range(64) for c in range(3)) for y in range(64)
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in (
            (b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)),
            (b"IDAT", zlib.compress(rows)),
            (b"IEND", b""),
        )
    )


def _left(ends_at: float) -> float:
    # gRPC reads 0 as "no time at all" and fails before it sends, which is what is meant.
    return max(0.0, ends_at - time.monotonic())


def _ms_since(started: float) -> float:
    return (time.monotonic() - started) * 1000


def _checked_timeout(timeout_s: float) -> float:
    if not 0 < timeout_s < math.inf:
        raise ValueError(f"a timeout is a number of seconds above 0, not {timeout_s}")
    return timeout_s


def _checked_id(request_id: str) -> str:
    if not 0 < len(request_id) <= MAX_REQUEST_ID_CHARS or not (request_id.isascii() and request_id.isprintable()):
        raise ValueError(f"a request id has 1 to {MAX_REQUEST_ID_CHARS} printable ASCII characters")
    return request_id
