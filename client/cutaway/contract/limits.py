"""Every limit, default, option and error code that Cutaway promises: one table, read by the SDK and the pipeline.

Validation on both sides of the wire, ``--help`` and the tables in the docs come from here; state no number elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

MIB = 1024 * 1024


@dataclass(frozen=True)
class InputLimits:
    """Bounds of a picture, all inclusive.

    ``max_decompression_ratio`` bounds width·height·4 ÷ file bytes, by the header, where that product is above
    ``ratio_free_bytes``: a flat logo compresses 5,000 times. Flat screenshots reach it legitimately, so that an
    operator can raise it (``CUTAWAY_MAX_DECOMPRESSION_RATIO``). ``max_jpeg_scans`` bounds a decoder's time: each scan
    of a progressive JPEG passes over all pixels; encoders write about ten, and 100 kB can hold thousands.
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

LOW_CONFIDENCE = 0.5  # a kept detection below this score raises a tier-3 warning in the report

DEFAULT_URL = "grpc://localhost:8001"  # Triton's own gRPC port on this machine
PROCESSING_TIMEOUT_S = 30.0  # the pipeline's own deadline for a picture
FALLBACK_TIMEOUT_S = 60.0  # default deadline of a call with hosted models: the server's own 30 s and as much again

CUT_MANY_JOBS = 4  # pictures in flight: enough to keep a server's instances busy, few enough not to fill its queue

RUN_GIVE_UP_FAILURES = 10  # in a row stop a command: more than a restart or a full queue causes
CLIENT_THREADS = 32  # for pictures that are read, checked and composed: as many as asyncio's executor has at most

DETECTOR_SIDE_PX = 640
MODEL_MAX_BATCH = 8
PERSON_CLASS = 0  # index of "person" among the 80 COCO classes of YOLOv8

# --------------------------------------------------------------------------------------------------- options


@dataclass(frozen=True)
class Option:
    """One request parameter of ``ensemble_pipeline``, or of ``stream_pipeline``; ``kind`` selects the parser.

    ``minimum … maximum`` (inclusive) are those of ``int`` and ``float``, and of the px in ``blur:<px>``. ``ids`` and
    ``boxes`` (pixels of the upright picture) are JSON lists; a ``backdrop`` is a ``background`` with ``picture``
    instead of ``transparent``.
    """

    name: str
    kind: Literal["choice", "int", "float", "bool", "ids", "boxes", "background", "backdrop"]
    default: str | int | float | bool | None
    help: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()

    @property
    def allowed(self) -> str:
        """The allowed values in words, for error messages, ``--help`` and docs."""
        first = "transparent" if self.kind == "background" else "picture"
        blur = f"{first}, #RRGGBB, or blur:<px> with px from {self.minimum or 0:g} to {self.maximum or 0:g}"
        return {
            "choice": ", ".join(self.choices),
            "bool": "true, false",
            "ids": "a list of ids from 0 upwards, at most 100",
            "boxes": "a list of 1 to 100 boxes [x1, y1, x2, y2] in pixels, x1 < x2 and y1 < y2",
            "background": blur,
            "backdrop": blur,
        }.get(self.kind, f"{self.minimum or 0:g} to {self.maximum or 0:g}")


_SUBJECT = (
    "what to cut out: 'people' together in one full-frame cut-out, 'each' person alone and cropped, "
    "'all', whatever the picture shows, or 'auto': people where there are some, else whatever it shows"
)
_OUTPUT = (
    "form of the cut-outs: 'png' or 'webp' (both with alpha), 'jpeg' (with a background only), 'mask' (8-bit "
    "PNG of the alpha), or 'layers' (ZIP of color.jpg and alpha.png)"
)
_ROWS = (
    Option("subject", "choice", "people", _SUBJECT, choices=("people", "each", "all", "auto")),
    Option("select", "ids", None, "only these people, by the report's ids; 0 is the largest"),
    Option("boxes", "boxes", None, "cut out what is in these boxes instead of what is detected"),
    Option("min_confidence", "float", 0.35, "keep detections from this score on; 0.3 finds more", 0.05, 0.95),
    Option("padding_px", "int", 20, "margin around a person's box when subject is 'each'", 0, 500),
    Option("feather_px", "int", 0, "soften the alpha with a Gaussian of this size; a matte is soft already", 0, 50),
    Option("background", "background", "transparent", "what stands behind; #00FF00 is the green screen", 1, 100),
    Option("decontaminate", "bool", True, "estimate the foreground's own colour at soft edges"),
    Option("output", "choice", "png", _OUTPUT, choices=("png", "webp", "mask", "jpeg", "layers")),
    Option("quality", "int", 90, "of the lossy colours of WebP, JPEG and layers", 1, 100),
    Option("max_people", "int", 20, "with subject 'each': at most this many people, largest first", 1, 100),
    Option("crop", "bool", False, "crop the cut-out to what is in it instead of keeping the picture's frame"),
    Option("crop_margin_px", "int", 0, "margin kept around it, in pixels of the picture", 0, 2000),
    Option("crop_margin_percent", "float", 0.0, "the same, of its longer side; the larger margin counts", 0, 100),
    Option("max_side_px", "int", None, "scale cut-outs down until no side is longer", 16, 7680),
)
OPTIONS: dict[str, Option] = {option.name: option for option in _ROWS}

_STREAM_ROWS = (
    Option("background", "backdrop", "#00FF00", "what stands behind; 'picture': that of the first frame", 1, 100),
    Option("min_confidence", "float", 0.35, "take people from this score on; who is there stays with less", 0.05, 0.95),
    Option("smoothing", "float", 0.8, "average of still parts' masks over time; 0 takes each as it comes", 0.0, 0.95),
    Option("channels", "choice", "rgb", "order of raw frames' channels; OpenCV has bgr", choices=("rgb", "bgr")),
    Option("quality", "int", 85, "of JPEG frames that come back", 1, 100),
)
STREAM_OPTIONS: dict[str, Option] = {option.name: option for option in _STREAM_ROWS}
"""Of a stream, sent with its first frame."""

# ---------------------------------------------------------------------------------------------------- errors


class Tier(IntEnum):
    """Severity of an event: 1 try again later (out of memory, crash); 2 this picture cannot be served; 3 a warning
    inside a successful answer, never an error; 4 noted in the log."""

    CRITICAL = 1
    HIGH = 2
    MEDIUM = 3
    LOW = 4


@dataclass(frozen=True)
class ErrorCode:
    """One row of the error table: ``grpc_status`` is the Triton/gRPC code by name; ``retry_after_s`` the wait to
    suggest where the event does not bring its own, or None where the same request cannot succeed later."""

    code: str
    tier: Tier
    grpc_status: Literal["INVALID_ARGUMENT", "UNAVAILABLE", "INTERNAL", "CANCELLED"]
    retry_after_s: float | None
    user_action: str

    @property
    def retry(self) -> bool:
        return self.retry_after_s is not None


_INPUT_ACTIONS = {
    "INVALID_FORMAT": "Send a JPEG, PNG, WebP or BMP file; under `strict`, one that is what its name and type say.",
    "FILE_TOO_LARGE": "Send a smaller file: lower the JPEG quality or the resolution.",
    "RESOLUTION_TOO_LARGE": "Scale the picture down to the largest sides allowed.",
    "TOO_MANY_PIXELS": "Scale the picture down to the number of pixels allowed.",
    "RESOLUTION_TOO_SMALL": "Send a larger picture: both sides need the smallest side allowed.",
    "IMAGE_BOMB": "The file would grow too much when decoded. If it is a flat picture, save it with less compression.",
    "CORRUPT_IMAGE": "The file is truncated or damaged. Save or send it again.",
    "INVALID_OPTION": "Correct the option named in the details.",
    "NO_PERSON_DETECTED": "Use a picture with faces visible, in good light, of at least 640×480; or lower "
    "min_confidence, give boxes, or ask for subject=all.",
}
_UNAVAILABLE = "The server or a model of it is not there. Check the address, or try again in a moment."
_FAILED = "A model failed. Try again; if it stays so, tell the operator the request id."
_CANCELLED = (
    "The caller, or a client that was closed, cancelled the request; send it again if the answer is still wanted."
)
_ERROR_ROWS = (
    *(ErrorCode(code, Tier.HIGH, "INVALID_ARGUMENT", None, action) for code, action in _INPUT_ACTIONS.items()),
    ErrorCode("OVERLOADED", Tier.CRITICAL, "UNAVAILABLE", 1.0, "The server's queue is full. Try again in a moment."),
    ErrorCode(
        "RATE_LIMIT_EXCEEDED", Tier.HIGH, "UNAVAILABLE", 60.0, "Wait until the limit is reset, or have it raised."
    ),
    ErrorCode("PROCESSING_TIMEOUT", Tier.HIGH, "UNAVAILABLE", None, "Send a smaller picture or ask for fewer people."),
    ErrorCode("GPU_MEMORY_EXHAUSTED", Tier.CRITICAL, "UNAVAILABLE", 30.0, "The GPU's memory is full. Try again later."),
    ErrorCode("INFERENCE_ERROR", Tier.CRITICAL, "INTERNAL", 1.0, _FAILED),
    ErrorCode("UNAVAILABLE", Tier.CRITICAL, "UNAVAILABLE", 1.0, _UNAVAILABLE),
    ErrorCode("CANCELLED", Tier.LOW, "CANCELLED", None, _CANCELLED),
)
ERROR_CODES: dict[str, ErrorCode] = {row.code: row for row in _ERROR_ROWS}

# --------------------------------------------------------------------------------------------- hosted tiers

TIER_TIMEOUTS_S = {"triton": 30.0, "huggingface": 10.0, "replicate": 30.0, "space": 60.0}
"""Timeout of each tier, within the call's overall deadline; tiers are numbered 1 to 4 in this order."""

UPSCALE_SCALES = (2, 4)
UPSCALE_LIMITS = InputLimits(max_long_side_px=2560, max_short_side_px=1440)
"""Bounds of a picture to upscale: 1440p in either orientation; enlarged four times, 59 megapixels."""

HOSTED_MAX_ANSWER_BYTES = 128 * MIB  # a hosted answer is cut off beyond this: a noisy 59-megapixel PNG stays below it

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

BREAKER_RESET_S = 60.0  # time until an open circuit breaker is half-open and lets one call through as a probe

CONNECT_TIMEOUT_S = 5.0
"""A server that has not accepted a connection by then is unavailable; the time is better spent on another one."""

SERVER_SILENT_S = 25.0
"""A server that has not answered by then counts as failed, since the pipeline's own deadline is 30 s."""

SERVER_BACK_S = 1.0
"""A server that has shed every request for so long, or exceeds deadlines, is tried last for so long. One that sheds
only some requests works at its capacity: passing it over would overload the others."""

SERVER_LATE_MAX = 2  # deadlines in a row that a server may exceed before it is tried last: one picture may be slow

# ------------------------------------------------------------------------------------------------------ streams

STREAM_LIMITS = InputLimits(max_long_side_px=3840, max_short_side_px=2160, max_pixels=3840 * 2160)
"""Bounds of a frame: 4K in either orientation."""

UNTOUCHED = "UNTOUCHED"  # code of the warning that a frame came back as it was, because it could not be processed

STREAM_IDLE_S = 10.0
"""The server ends a stream that sends nothing for so long; its next frame starts it anew."""

STREAM_TIMEOUT_S = 2.0
"""Default timeout of a frame, which then comes back untouched: a later one is useless in a live video."""

STREAM_BACK_OFF_FIRST_S = 0.25
STREAM_BACK_OFF_MAX_S = 4.0
"""Back-off after a failure, doubling: frames come back untouched at once, so that the video goes on."""

STREAM_RESULTS_KEPT = 8
"""Finished frames that are buffered; beyond it the oldest is dropped. A longer buffer would only add latency."""

# ---------------------------------------------------------------------------------- cache, compositing, metrics

CACHE_MAX_BYTES = 1024 * MIB
"""An answer is about a megabyte: room for a thousand pictures, on any disk that holds pictures at all."""

CACHE_RESULTS_MAX_AGE_S = 3 * 86400.0
"""Models and a server's settings change; whoever asks again after three days wants what they make of it now."""

COMPOSITE_LIMITS = InputLimits(min_side_px=1)
"""What a composite may measure: as much as a picture that is sent, and as little as one pixel."""

COMPOSITE_OUTPUTS = ("png", "webp", "jpeg")
COMPOSITE_QUALITY = 90  # of lossy composites, 1 to 100: what the server's WebPs have

COMPOSITE_SCALE = (0.01, 4.0)
"""Height of what is placed as a share of the canvas: from a figure far off to an eye that fills the picture."""

MATCH_MAX_LIGHTNESS = 25.0
MATCH_MAX_TINT = 10.0
MATCH_MAX_CONTRAST = 1.15
"""How far a full colour match moves the mean, in levels of 255, and the spread at most: further, skin looks sick."""

METRIC_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""From an answer out of the cache to the deadline of a call with fallback; 30 is a server's own limit."""
