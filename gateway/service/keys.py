"""API keys and the limits of their tiers.

The key file is TOML with a table per caller, which holds the key's SHA-256 and never the key::

    [acme]
    sha256 = "9f86d081884c7d65…"
    tier = "basic"

Keys are 256 random bits (`python -m gateway key`), so a plain hash cannot be searched.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
import time
import tomllib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cutaway.contract.errors import RateLimitExceeded
from limits import RateLimitItem, RateLimitItemPerMinute, RateLimitItemPerSecond
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter
from limits.errors import StorageError
from limits.storage import storage_from_string

from gateway.access import current
from gateway.metrics import Metrics
from gateway.service.errors import ServiceProblem, timestamp
from gateway.service.settings import KEY_HEADER, TIERS_PER_MINUTE, ServiceSettings

log = logging.getLogger(__name__)

PACE_S = 1.0
"""A request over the limit per second waits for at most so long: a page that sends four at once is not refused."""


@dataclass(frozen=True)
class Caller:
    """Who sends a request, a key's name or an address, and how many requests it may send."""

    name: str
    per_minute: int
    per_second: int
    tier: str = "free"


@dataclass(frozen=True)
class Quota:
    """What is left of a caller's minute."""

    limit: int
    remaining: int
    reset_at_s: float


def new_key(tier: str, name: str) -> tuple[str, str]:
    """A new key, and the lines for the key file that let it in."""
    key = secrets.token_urlsafe(32)
    return key, f'[{name}]\nsha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\ntier = "{tier}"\n'


class Keys:
    """Who is who, and what each may send. ValueError where the file of keys makes no sense."""

    def __init__(self, settings: ServiceSettings) -> None:
        path = Path(settings.keys) if settings.keys else None
        self._settings = settings
        per_minute = TIERS_PER_MINUTE | {"free": settings.free_per_minute}
        self._callers: list[tuple[bytes, Caller]] = []
        for name, entry in tomllib.loads(path.read_text()).items() if path else ():
            tier, digest = entry.get("tier", "free"), bytes.fromhex(entry.get("sha256", ""))
            if tier not in TIERS_PER_MINUTE or len(digest) != 32:
                raise ValueError(f"{path}: [{name}] needs sha256 and a tier of {', '.join(TIERS_PER_MINUTE)}")
            per_second = max(settings.free_per_second, per_minute[tier] // 10)
            self._callers.append((digest, Caller(f"key:{name}", per_minute[tier], per_second, tier)))

    def caller(self, key: str | None, address: str) -> Caller:
        """The caller with this key, else the address.

        Raises:
            ServiceProblem: 401, where keys are required and this is none.
        """
        digest, found = hashlib.sha256((key or "").encode()).digest(), None
        for known, caller in self._callers:  # all of them, so that the time tells nothing about which
            if hmac.compare_digest(known, digest):
                found = caller
        if found is None and self._settings.keys_required:
            action = f"Send a key in the header {KEY_HEADER}."
            message = "The API key is not known." if key else "An API key is missing."
            raise ServiceProblem(401, "UNAUTHORIZED", message, action, title="auth_failed")
        free, entry = self._settings, current()
        caller = found or Caller(f"address:{address}", free.free_per_minute, free.free_per_second)
        entry.key, entry.tier = caller.name.partition("key:")[2], caller.tier
        return caller


class Limiter:
    """Counts callers' requests in a moving window, in the process or on Redis."""

    def __init__(self, redis_url: str, metrics: Metrics) -> None:
        self._shed = metrics.shed
        self._own = MovingWindowRateLimiter(MemoryStorage())
        self._clock_s = time.time() - time.monotonic()
        self._shared: MovingWindowRateLimiter | None = None
        if redis_url:
            options: dict[str, Any] = {"implementation": "redispy", "wrap_exceptions": True}
            self._shared = MovingWindowRateLimiter(storage_from_string(f"async+{redis_url}", **options))

    def _in_process(self) -> MovingWindowRateLimiter:
        """Begun anew where the clock was set back: the window would end when that time comes again. On Redis it does
        after a minute, by Redis' own clock."""
        clock_s = time.time() - time.monotonic()
        if clock_s < self._clock_s - PACE_S:
            self._own = MovingWindowRateLimiter(MemoryStorage())
        self._clock_s = clock_s
        return self._own

    async def admit(self, caller: Caller, cost: int = 1) -> Quota:
        """Count `cost` requests; in this process alone while Redis is away.

        Raises:
            RateLimitExceeded: the minute's are used up, or more come per second than pacing can take.
        """
        if self._shared is not None:
            try:
                return await self._admit(self._shared, caller, cost)
            except StorageError as error:
                log.warning("Redis is away, so that limits are counted by each gateway alone: %s", error)
        return await self._admit(self._in_process(), caller, cost)

    async def quota(self, caller: Caller) -> Quota:
        """What is left of the caller's minute."""
        if self._shared is not None:
            with suppress(StorageError):
                return await _quota(self._shared, caller)
        return await _quota(self._in_process(), caller)

    async def _admit(self, limiter: MovingWindowRateLimiter, caller: Caller, cost: int) -> Quota:
        minute: RateLimitItem = RateLimitItemPerMinute(caller.per_minute)
        if not await limiter.hit(minute, caller.name, cost=cost):
            self._shed.labels("per_minute").inc()
            raise _exceeded(f"{caller.per_minute} requests per minute", await _quota(limiter, caller))
        second, until = RateLimitItemPerSecond(caller.per_second), time.monotonic() + PACE_S
        while not await limiter.hit(second, caller.name):
            if time.monotonic() > until:
                self._shed.labels("per_second").inc()
                quota = Quota(caller.per_second, 0, time.time() + 1)
                raise _exceeded(f"{caller.per_second} requests per second", quota)
            await asyncio.sleep(0.05)
        return await _quota(limiter, caller)


async def _quota(limiter: MovingWindowRateLimiter, caller: Caller) -> Quota:
    window = await limiter.get_window_stats(RateLimitItemPerMinute(caller.per_minute), caller.name)
    return Quota(caller.per_minute, max(0, window.remaining), window.reset_time)


def _exceeded(limit: str, quota: Quota) -> RateLimitExceeded:
    wait_s = max(1.0, quota.reset_at_s - time.time())
    details = {"requests_remaining": quota.remaining, "limit_reset_at": timestamp(quota.reset_at_s)}
    error = RateLimitExceeded(f"Rate limit exceeded: {limit}", details=details, retry_after=wait_s)
    error.details["retry_after_seconds"] = round(wait_s)
    return error
