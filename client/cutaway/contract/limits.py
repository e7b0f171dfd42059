"""Every limit, default, option and error code that Cutaway promises: one table, read by the SDK and the pipeline.

Validation on both sides of the wire, ``--help`` texts and the tables in the docs come from here. Change a number
here and it changes everywhere; state none of them again elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

MIB = 1024 * 1024


@dataclass(frozen=True)
class InputLimits:
    """Bounds of a picture, all inclusive.

    ``max_decompression_ratio`` bounds width·height·4 ÷ file bytes, computed from the header before any decoding, where
    that product is above ``ratio_free_bytes``: a flat logo compresses 5,000 times, and below that size the pixel cap is
    the protection. Flat screenshots reach it legitimately, so that an operator can raise it
    (``CUTAWAY_MAX_DECOMPRESSION_RATIO``).
    ``max_jpeg_scans`` bounds a decoder's time as the ratio bounds its memory: each scan of a progressive JPEG passes
    over all pixels; encoders write about ten, and 100 kB can hold thousands.
    """

    formats: tuple[str, ...] = ("jpeg", "png", "webp", "bmp")
    max_file_bytes: int = 10 * MIB
    max_long_side_px: int = 7680
    max_short_side_px: int = 4320
    max_pixels: int = 50_000_000
    min_side_px: int = 64
    max_decompression_ratio: float = 1000.0
    ratio_free_bytes: int = 64 * MIB
    max_jpeg_scans: int = 100


INPUT_LIMITS = InputLimits()

FIT_LIMITS = InputLimits(
    max_file_bytes=256 * MIB, max_long_side_px=65_535, max_short_side_px=65_535, max_pixels=200_000_000
)
"""What a client with ``fit`` takes and sends a smaller copy of. The largest phone cameras have 200 megapixels, which
take 0.8 GB decoded, and as much again for a cut-out; no JPEG has longer sides."""

MEDIA_TYPES = {"jpeg": "image/jpeg", "png": "image/png", "webp": "image/webp", "bmp": "image/bmp"}

PROFILES = ("nano", "lite", "512", "general", "portrait", "matting", "dynamic", "legacy", "dis", "lite-2k", "hr")
"""Names of the model pairs: ``nano`` is bundled, the others are BiRefNet's released variants."""

LOW_CONFIDENCE = 0.5
"""A kept detection below this score raises a tier-3 warning in the report."""

DEFAULT_URL = "grpc://localhost:8001"
"""Triton's own gRPC port on this machine."""

PROCESSING_TIMEOUT_S = 30.0
"""The pipeline's own deadline for a picture."""

ANSWER_MAX_BYTES = 144 * MIB
"""An answer's files together: one cut-out of the largest picture that does not compress at all has 132 MiB. A
pipeline's process holds an answer four times while it hands it on, and Triton keeps as much shared memory for good."""

FALLBACK_TIMEOUT_S = 60.0
"""Default deadline of a call with hosted models: the server's own 30 s and as much again."""

CUT_MANY_JOBS = 4
"""Pictures in flight at once: enough to keep a server's instances busy, few enough not to fill its queue."""

CLIENT_THREADS = 32
"""Of an asynchronous client, for pictures that are read, checked and composed: as many as asyncio's executor has at
most."""

RUN_GIVE_UP_FAILURES = 10
"""A command stops after so many failures of the server in a row: more than a restart or a full queue causes with a few
pictures in flight, few enough not to fail thousands one by one."""

DETECTOR_SIDE_PX = 640
DETECTOR_CANDIDATES = 300
MODEL_MAX_BATCH = 8
PERSON_CLASS = 0
"""Index of "person" among the 80 COCO classes of YOLOv8."""


# --------------------------------------------------------------------------------------------------- options


@dataclass(frozen=True)
class Option:
    """One request parameter of ``ensemble_pipeline``, or of ``stream_pipeline``.

    ``kind`` selects the parser: ``choice`` takes one of ``choices``; ``int`` and ``float`` lie in
    ``minimum … maximum`` (inclusive); ``bool``; ``ids`` is a JSON list of whole numbers ≥ 0; ``boxes`` is a JSON
    list of ``[x1, y1, x2, y2]`` in pixels of the upright picture; ``background`` is ``transparent``, ``#RRGGBB`` or
    ``blur:<px>`` with px in ``minimum … maximum``; ``backdrop`` is the same with ``picture`` instead of transparent.
    """

    name: str
    kind: Literal["choice", "int", "float", "bool", "ids", "boxes", "background", "backdrop"]
    default: str | int | float | bool | None
    help: str
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None

    @property
    def allowed(self) -> str:
        """The allowed values in words, for error messages, ``--help`` and docs."""
        if self.kind == "choice":
            return ", ".join(self.choices)
        if self.kind in ("int", "float"):
            return f"{self.minimum:g} to {self.maximum:g}"
        if self.kind == "bool":
            return "true, false"
        if self.kind == "ids":
            return "a list of ids from 0 upwards, at most 100"
        if self.kind == "boxes":
            return "a list of 1 to 100 boxes [x1, y1, x2, y2] in pixels, x1 < x2 and y1 < y2"
        first = "transparent" if self.kind == "background" else "picture"
        return f"{first}, #RRGGBB, or blur:<px> with px from {self.minimum:g} to {self.maximum:g}"


OPTIONS: dict[str, Option] = {
    option.name: option
    for option in (
        Option(
            "subject",
            "choice",
            "people",
            "what to cut out: 'people' together in one full-frame cut-out, 'each' person alone and cropped, "
            "'all', whatever the picture shows, or 'auto': people where there are some, else whatever it shows",
            choices=("people", "each", "all", "auto"),
        ),
        Option("select", "ids", None, "only these people, by the report's ids; 0 is the largest"),
        Option("boxes", "boxes", None, "cut out what is in these boxes instead of what is detected"),
        Option(
            "min_confidence",
            "float",
            0.35,
            "keep detections from this score on; 0.3 finds more, 0.7 is strict",
            minimum=0.05,
            maximum=0.95,
        ),
        Option("padding_px", "int", 20, "margin around a person's box when subject is 'each'", minimum=0, maximum=500),
        Option(
            "feather_px",
            "int",
            0,
            "soften the alpha with a Gaussian of this size; a matte is soft already",
            minimum=0,
            maximum=50,
        ),
        Option(
            "background",
            "background",
            "transparent",
            "what stands behind the cut-out; #00FF00 is the green screen",
            minimum=1,
            maximum=100,
        ),
        Option("decontaminate", "bool", True, "estimate the foreground's own colour at soft edges"),
        Option(
            "output",
            "choice",
            "png",
            "form of the cut-outs: 'png' or 'webp' (both with alpha), 'jpeg' (with a background only), 'mask' (8-bit "
            "PNG of the alpha), or 'layers' (ZIP of color.jpg and alpha.png)",
            choices=("png", "webp", "mask", "jpeg", "layers"),
        ),
        Option("quality", "int", 90, "of the lossy colours of WebP, JPEG and layers", minimum=1, maximum=100),
        Option(
            "max_people",
            "int",
            20,
            "with subject 'each': at most this many people, largest first; the other subjects take everybody",
            minimum=1,
            maximum=100,
        ),
        Option("crop", "bool", False, "crop the cut-out to what is in it instead of keeping the picture's frame"),
        Option("crop_margin_px", "int", 0, "margin kept around it, in pixels of the picture", minimum=0, maximum=2000),
        Option(
            "crop_margin_percent",
            "float",
            0.0,
            "the same as a share of its longer side; the larger margin counts",
            minimum=0,
            maximum=100,
        ),
        Option(
            "max_side_px",
            "int",
            None,
            "scale cut-outs down until no side is longer; nothing is scaled up",
            minimum=16,
            maximum=7680,
        ),
    )
}

STREAM_OPTIONS: dict[str, Option] = {
    option.name: option
    for option in (
        Option(
            "background",
            "backdrop",
            "#00FF00",
            "what stands behind people; 'picture' is the one that comes with the first frame",
            minimum=1,
            maximum=100,
        ),
        Option(
            "min_confidence",
            "float",
            0.35,
            "take people from this score on; whoever is there already stays with less",
            minimum=0.05,
            maximum=0.95,
        ),
        Option(
            "smoothing",
            "float",
            0.8,
            "how much masks are averaged over time where the picture stands still; 0 takes each as it comes",
            minimum=0.0,
            maximum=0.95,
        ),
        Option("channels", "choice", "rgb", "order of raw frames' channels; OpenCV has bgr", choices=("rgb", "bgr")),
        Option("quality", "int", 85, "of JPEG frames that come back", minimum=1, maximum=100),
    )
}
"""Of a stream, sent with its first frame."""


# ---------------------------------------------------------------------------------------------------- errors


class Tier(IntEnum):
    """Severity of an event. Tier-3 events are warnings inside a successful answer, never errors."""

    CRITICAL = 1
    """Out of memory, crash: try again later."""
    HIGH = 2
    """This picture cannot be served: try another one."""
    MEDIUM = 3
    """A result with a warning."""
    LOW = 4
    """Noted in the log."""


@dataclass(frozen=True)
class ErrorCode:
    """One row of the error table.

    ``http_status`` is the status that an HTTP façade gives; Triton itself answers INVALID_ARGUMENT as 400.
    ``grpc_status`` is the Triton/gRPC code by name. ``retry`` says whether the same request can succeed later;
    ``retry_after_s`` is the wait to suggest where the event does not bring its own.
    """

    code: str
    tier: Tier
    http_status: int
    grpc_status: Literal["INVALID_ARGUMENT", "UNAVAILABLE", "INTERNAL", "DEADLINE_EXCEEDED", "CANCELLED"]
    user_action: str
    retry: bool = False
    retry_after_s: float | None = None


def _input_error(code: str, http_status: int, user_action: str) -> ErrorCode:
    return ErrorCode(code, Tier.HIGH, http_status, "INVALID_ARGUMENT", user_action)


ERROR_CODES: dict[str, ErrorCode] = {
    row.code: row
    for row in (
        _input_error(
            "INVALID_FORMAT",
            400,
            "Send a JPEG, PNG, WebP or BMP file whose content is what its name and media type say.",
        ),
        _input_error("FILE_TOO_LARGE", 413, "Send a smaller file: lower the JPEG quality or the resolution."),
        _input_error("RESOLUTION_TOO_LARGE", 400, "Scale the picture down to the largest sides allowed."),
        _input_error("TOO_MANY_PIXELS", 400, "Scale the picture down to the number of pixels allowed."),
        _input_error("RESOLUTION_TOO_SMALL", 400, "Send a larger picture: both sides need the smallest side allowed."),
        _input_error(
            "IMAGE_BOMB",
            400,
            "The file would grow too much when decoded. If it is a flat picture, save it with less compression.",
        ),
        _input_error("CORRUPT_IMAGE", 400, "The file is truncated or damaged. Save or send it again."),
        _input_error("INVALID_OPTION", 400, "Correct the option named in the details."),
        _input_error(
            "NO_PERSON_DETECTED",
            422,
            "Use a picture with faces visible, in good light, of at least 640×480; or lower min_confidence, give "
            "boxes, or ask for subject=all.",
        ),
        ErrorCode(
            "OVERLOADED",
            Tier.CRITICAL,
            503,
            "UNAVAILABLE",
            "The server has more work than it can queue. Wait shortly and try again.",
            retry=True,
            retry_after_s=1.0,
        ),
        ErrorCode(
            "RATE_LIMIT_EXCEEDED",
            Tier.HIGH,
            429,
            "UNAVAILABLE",
            "Wait until the limit is reset, or use an API key of a higher tier.",
            retry=True,
            retry_after_s=60.0,
        ),
        ErrorCode(
            "PROCESSING_TIMEOUT", Tier.HIGH, 504, "UNAVAILABLE", "Send a smaller picture or ask for fewer people."
        ),
        ErrorCode(
            "GPU_MEMORY_EXHAUSTED",
            Tier.CRITICAL,
            503,
            "UNAVAILABLE",
            "The GPU is short of memory. Wait half a minute and try again.",
            retry=True,
            retry_after_s=30.0,
        ),
        ErrorCode(
            "INFERENCE_ERROR",
            Tier.CRITICAL,
            500,
            "INTERNAL",
            "A model failed. Try again; if it stays so, tell the operator the request id.",
            retry=True,
            retry_after_s=1.0,
        ),
        ErrorCode(
            "UNAVAILABLE",
            Tier.CRITICAL,
            503,
            "UNAVAILABLE",
            "The server or a model of it is not there. Check the address, or try again in a moment.",
            retry=True,
            retry_after_s=1.0,
        ),
        ErrorCode(
            "CANCELLED",
            Tier.LOW,
            499,
            "CANCELLED",
            "The caller gave the request up; send it again if the answer is still wanted.",
        ),
    )
}


# --------------------------------------------------------------------------------------------- hosted tiers


TIER_TIMEOUTS_S = {"triton": 30.0, "huggingface": 10.0, "replicate": 30.0, "space": 60.0}
"""Timeout of each tier, within the call's overall deadline; tiers are numbered 1 to 4 in this order."""

UPSCALE_SCALES = (2, 4)
UPSCALE_LIMITS = InputLimits(max_long_side_px=2560, max_short_side_px=1440)
"""Bounds of a picture to upscale: 1440p in either orientation; enlarged four times, 59 megapixels."""

HOSTED_MAX_ANSWER_BYTES = 128 * MIB
"""A hosted answer is cut off beyond this: a noisy 59-megapixel PNG stays below it."""

HOSTED_MAX_REQUESTS = 100
"""Requests that one call may send to one provider, polls included. A minute of polling takes about 35."""

COLD_START_TRIES = 5
"""Requests to a hosted model that answers that it is still loading, before its tier counts as failed."""

RETRIES = 2
"""Repeats after the first request. A third one rarely helps and triples the load on a service that is down."""

RETRY_FIRST_DELAY_S = 0.5
RETRY_MAX_DELAY_S = 8.0
"""Delays double from the first to the longest: longer than a short outage, short enough for a waiting person."""

RETRY_JITTER = 0.25
"""A delay is shortened by up to this share, so that clients that failed together do not retry together."""

RETRY_AFTER_MAX_S = 120.0
"""A `Retry-After` up to this is obeyed; a longer one fails at once, because nobody waits that long for a picture."""

RETRY_BUDGET_TOKENS = 5.0
RETRY_BUDGET_PER_SUCCESS = 0.1
"""A retry costs one token, a success brings back a tenth: n calls in a total outage send at most n + 5 requests."""

BREAKER_FAIL_MAX = 5
"""Failures in a row that open a provider's circuit breaker: fewer would open it for a short outage."""

BREAKER_RESET_S = 60.0
"""Time until an open circuit breaker is half-open and lets one call through as a probe."""

CONNECT_TIMEOUT_S = 5.0
"""A server that has not accepted a connection by then is unavailable; the time is better spent on another one."""

ENDPOINT_SILENT_S = 25.0
"""An own server that has not answered by then counts as failed, since the pipeline's own deadline is 30 s. A shorter
deadline of a caller's, when exceeded, says nothing about the server."""

ENDPOINT_BACK_S = 1.0
"""A server that has shed every request for so long, or exceeds deadlines, is tried last for so long. One that sheds
only some requests works at its capacity: passing it over would overload the others."""

ENDPOINT_LATE_MAX = 2
"""Deadlines in a row that a server may exceed before it is tried last: one picture may be slow."""


# ------------------------------------------------------------------------------------------------------ streams


STREAM_LIMITS = InputLimits(max_long_side_px=3840, max_short_side_px=2160, max_pixels=3840 * 2160)
"""Bounds of a frame: 4K in either orientation."""

UNTOUCHED = "UNTOUCHED"
"""Code of the warning that a frame came back as it was, because it could not be processed."""

STREAM_IDLE_S = 10.0
"""The server ends a stream that sends nothing for so long; its next frame starts it anew."""

STREAM_TIMEOUT_S = 2.0
"""Default timeout of a frame, which then comes back untouched: a later one is useless in a live video."""

STREAM_BACK_OFF_FIRST_S = 0.25
STREAM_BACK_OFF_MAX_S = 4.0
"""Back-off after a failure, doubling: frames come back untouched at once, since waiting for each frame's timeout would
stop the video."""

STREAM_RESULTS_KEPT = 8
"""Finished frames that are buffered; beyond it the oldest is dropped. A longer buffer would only add latency."""

STREAM_STATISTICS_FRAMES = 300
"""Window of the rates and latencies, in frames: ten seconds of a webcam's."""


# -------------------------------------------------------------------------------------------------------- cache


CACHE_MAX_BYTES = 1024 * MIB
"""An answer is about a megabyte: room for a thousand pictures, on any disk that holds pictures at all."""

CACHE_RESULTS_MAX_AGE_S = 3 * 86400.0
"""Models and a server's settings change; whoever asks again after three days wants what they make of it now."""


# ------------------------------------------------------------------------------------------------- compositing


COMPOSITE_LIMITS = InputLimits(min_side_px=1)
"""What a composite may measure: as much as a picture that is sent, and as little as one pixel."""

COMPOSITE_OUTPUTS = ("png", "webp", "jpeg")
COMPOSITE_QUALITY = 90
"""Of lossy composites, 1 to 100: what the server's WebPs have."""

COMPOSITE_SCALE = (0.01, 4.0)
"""Height of what is placed as a share of the canvas: from a figure far off to an eye that fills the picture."""

MATCH_MAX_LIGHTNESS = 10.0
MATCH_MAX_CHROMA = 6.0
MATCH_MAX_CONTRAST = 1.15
"""How far a full colour match moves the mean, in units of CIELAB, and the spread at most: further, skin looks sick."""


# ------------------------------------------------------------------------------------------------ observability


METRIC_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""From an answer out of the cache to the deadline of a call with fallback; 30 is a server's own limit."""
