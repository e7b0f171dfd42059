"""Settings of the HTTP service, with the reason for each number."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cutaway.contract.limits import INPUT_LIMITS, MIB

KEY_HEADER = "X-API-Key"

TIERS_PER_MINUTE = {"free": 30, "basic": 100, "pro": 1000}
"""Requests a minute that an API key's tier may send; callers without a key have the free tier, by address."""

PER_SECOND = 3
"""Requests a second of one caller in the free tier; the others have as many as their minute needs."""

FORM_BYTES = MIB
"""What a form may hold beside its pictures: options, names, and multipart's own lines."""

MAX_REQUEST_BYTES = INPUT_LIMITS.max_file_bytes * 4 // 3 + FORM_BYTES
"""A picture of the largest size as base64 in JSON, with its options."""

DAY_S = 86_400.0
KEEP_S = {"uploads": 7 * DAY_S, "persons": 3 * DAY_S, "cutouts": 3 * DAY_S, "videos": 30 * DAY_S, "temporary": 3600.0}
"""How long each kind of stored object is kept: the specification's times."""

SWEEP_INTERVAL_S = 6 * 3600.0


@dataclass(frozen=True)
class ServiceSettings:
    """What the HTTP service is started with.

    Attributes:
        triton_url: the Triton that it asks, as the SDK takes it.
        storage: a folder, "memory:", or "s3://bucket/prefix" (credentials from the environment).
        storage_max_bytes: beyond it, uploads are refused until the sweep has made room.
        redis_url: where limits and jobs are kept, so that several gateways share them; in the process where empty.
        keys: a file of API keys, see `keys.py`; none where None.
        keys_required: whether requests without a key of the file are refused.
        image_hosts: hosts that `image_url` may name; where empty, any host with a public address.
        batch_max_pictures, batch_max_bytes: bounds of one batch.
        jobs: pictures that wait or are worked on in the background at most, in each gateway.
        job_timeout_s: deadline of a job; after it, another gateway takes the job of one that has died.
        cors_origins: origins whose pages may call the service.
        hosted: hosted models for `/api/ai/hd-image`, as `cutaway --fallback` names them.
        did_url: where D-ID's API is.
        did_key: the operator's key for D-ID; never logged.
        page: the folder of the page's files.
    """

    triton_url: str = "grpc://127.0.0.1:8001"
    triton_metrics_url: str = ""
    storage: str = "memory:"
    storage_max_bytes: int = 4096 * MIB
    redis_url: str = ""
    keys: Path | None = None
    keys_required: bool = False
    image_hosts: tuple[str, ...] = ()
    image_private: bool = False
    batch_max_pictures: int = 20
    batch_max_bytes: int = 64 * MIB
    jobs: int = 100
    job_timeout_s: float = 60.0
    timeout_s: float = 30.0
    cors_origins: tuple[str, ...] = ()
    hosted: tuple[str, ...] = ()
    did_url: str = "https://api.d-id.com"
    did_key: str = field(default="", repr=False)
    page: Path = Path(__file__).parent.parent / "page"
