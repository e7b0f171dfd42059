"""Settings of the HTTP service, with the reason for each number."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cutaway.contract.limits import INPUT_LIMITS, MIB

from gateway.settings import setting

KEY_HEADER = "X-API-Key"

TIERS_PER_MINUTE = {"free": 30, "basic": 100, "pro": 1000}
"""Requests a minute that an API key's tier may send, and a tenth of them a second; callers without a key have the free
tier, by address."""

FORM_BYTES = MIB
"""What a form may hold beside its pictures: options, names, and multipart's own lines."""

MAX_REQUEST_BYTES = INPUT_LIMITS.max_file_bytes * 4 // 3 + FORM_BYTES
"""A picture of the largest size as base64 in JSON, with its options."""

DAY_S = 86_400.0
KEEP_S = {"uploads": 7 * DAY_S, "persons": 3 * DAY_S, "cutouts": 3 * DAY_S, "videos": 30 * DAY_S, "temporary": 3600.0}
"""How long each kind of stored object is kept: the specification's times."""

SWEEP_INTERVAL_S = 6 * 3600.0


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """The HTTP service's settings; each field is also an option of the command line, and its reason is the help.

    Secrets come from the environment: CUTAWAY_DID_KEY, and those of S3 and of hosted models as their libraries say.
    """

    service_port: int = setting(55433, "port of the HTTP service and its page; 0 takes any free one, -1 leaves it out")
    storage: str = setting("memory:", "where pictures behind ids are kept: memory:, a folder, or s3://bucket/prefix")
    storage_max_bytes: int = setting(4096 * MIB, "of kept pictures; further uploads are refused until some are deleted")
    redis_url: str = setting(
        "",
        "where several gateways share limits and jobs, as redis://host:6379; else CUTAWAY_REDIS_URL, or in the process",
    )
    keys: str = setting("", "file of API keys; `python -m gateway --new-key TIER NAME` makes one")
    keys_required: bool = setting(False, "refuse requests without a key of the file")
    free_per_minute: int = setting(30, "requests of a caller without a key")
    free_per_second: int = setting(3, "of the same; further ones wait for up to a second, so that a page may send four")
    trusted_proxies: tuple[str, ...] = setting((), "addresses whose X-Forwarded-For is believed")
    image_hosts: tuple[str, ...] = setting(
        (), "hosts that image_url may name; any with a public address where none is given"
    )
    image_private: bool = setting(False, "let image_url name private addresses: for closed networks alone")
    batch_max_pictures: int = setting(20, "of one batch")
    batch_max_bytes: int = setting(64 * MIB, "of one batch: it is held in memory and on disk while it is read")
    jobs: int = setting(100, "unfinished jobs that this gateway takes: each holds a picture in the storage")
    job_timeout_s: float = setting(60.0, "of a job: twice the pipeline's own, for its waiting")
    job_reclaim_s: float = setting(90.0, "after which a job of a gateway that has died is begun by another, on Redis")
    hosted: tuple[str, ...] = setting(
        (),
        "hosted models that enlarge pictures, huggingface or replicate; or NAME=URL for an address of one's own",
    )
    did_url: str = setting("https://api.d-id.com", "address of D-ID's API")

    @property
    def did_key(self) -> str:
        return os.environ.get("CUTAWAY_DID_KEY", "")

    @property
    def page(self) -> Path:
        """The folder of the page's files."""
        return Path(__file__).parent.parent / "page"
