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
import secrets
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

from cutaway.contract.errors import RateLimitExceeded
from limits import RateLimitItem, RateLimitItemPerMinute, RateLimitItemPerSecond
from limits.aio.strategies import MovingWindowRateLimiter
from limits.storage import storage_from_string

from gateway.service.errors import ServiceProblem, timestamp
from gateway.service.settings import KEY_HEADER, PER_SECOND, TIERS_PER_MINUTE

PACE_S = 1.0
"""A request over the limit per second waits for at most so long: a page that sends four at once is not refused."""


@dataclass(frozen=True)
class Caller:
    """Who sends a request: a key's name, or an address; with the tier's limits."""

    name: str
    tier: str = "free"

    @property
    def per_minute(self) -> int:
        return TIERS_PER_MINUTE[self.tier]

    @property
    def per_second(self) -> int:
        return PER_SECOND if self.tier == "free" else max(PER_SECOND, self.per_minute // 10)


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
    """The key file. ValueError where it makes no sense."""

    def __init__(self, path: Path | None, required: bool = False) -> None:
        self.required = required
        self._callers: list[tuple[bytes, Caller]] = []
        for name, entry in tomllib.loads(path.read_text()).items() if path else ():
            tier, digest = entry.get("tier", "free"), bytes.fromhex(entry.get("sha256", ""))
            if tier not in TIERS_PER_MINUTE or len(digest) != 32:
                raise ValueError(f"{path}: [{name}] needs sha256 and a tier of {', '.join(TIERS_PER_MINUTE)}")
            self._callers.append((digest, Caller(f"key:{name}", tier)))

    def caller(self, key: str | None, address: str) -> Caller:
        """The caller with this key, else the address.

        Raises:
            ServiceProblem: 401, where keys are required and this is none.
        """
        digest, found = hashlib.sha256((key or "").encode()).digest(), None
        for known, caller in self._callers:  # all of them, so that the time tells nothing about which
            if hmac.compare_digest(known, digest):
                found = caller
        if found is None and self.required:
            action = f"Send a key in the header {KEY_HEADER}."
            message = "The API key is not known." if key else "An API key is missing."
            raise ServiceProblem(401, "UNAUTHORIZED", message, action, title="auth_failed")
        return found or Caller(f"address:{address}")


class Limiter:
    """Counts callers' requests in a moving window, in the process or on Redis."""

    def __init__(self, redis_url: str = "") -> None:
        options = {"implementation": "redispy"} if redis_url else {}
        storage = storage_from_string(f"async+{redis_url}" if redis_url else "async+memory://", **options)
        self._limiter = MovingWindowRateLimiter(storage)

    async def admit(self, caller: Caller, cost: int = 1) -> Quota:
        """Count `cost` requests.

        Raises:
            RateLimitExceeded: the minute's are used up, or more come per second than pacing can take.
        """
        minute: RateLimitItem = RateLimitItemPerMinute(caller.per_minute)
        if not await self._limiter.hit(minute, caller.name, cost=cost):
            raise _exceeded(f"{caller.per_minute} requests per minute", await self.quota(caller))
        second, until = RateLimitItemPerSecond(caller.per_second), time.monotonic() + PACE_S
        while not await self._limiter.hit(second, caller.name):
            if time.monotonic() > until:
                quota = Quota(caller.per_second, 0, time.time() + 1)
                raise _exceeded(f"{caller.per_second} requests per second", quota)
            await asyncio.sleep(0.05)
        return await self.quota(caller)

    async def quota(self, caller: Caller) -> Quota:
        window = await self._limiter.get_window_stats(RateLimitItemPerMinute(caller.per_minute), caller.name)
        return Quota(caller.per_minute, max(0, window.remaining), window.reset_time)


def _exceeded(limit: str, quota: Quota) -> RateLimitExceeded:
    wait_s = max(1.0, quota.reset_at_s - time.time())
    details = {"requests_remaining": quota.remaining, "limit_reset_at": timestamp(quota.reset_at_s)}
    error = RateLimitExceeded(f"Rate limit exceeded: {limit}", details=details, retry_after=wait_s)
    error.details["retry_after_seconds"] = round(wait_s)
    return error
