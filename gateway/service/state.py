"""What the routes share, and who is asking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cutaway import AsyncClient
from fastapi import Depends, Request

from gateway.service.engine import Engine
from gateway.service.fetch import Fetcher
from gateway.service.jobs import Jobs
from gateway.service.keys import Caller, Keys, Limiter, Quota
from gateway.service.settings import KEY_HEADER, ServiceSettings
from gateway.service.storage import Storage


@dataclass
class State:
    """Built once, by `app.create_app`."""

    settings: ServiceSettings
    engine: Engine
    enlarger: AsyncClient | None  # asks the hosted models
    storage: Storage
    keys: Keys
    limiter: Limiter
    jobs: Jobs
    fetcher: Fetcher


async def state_of(request: Request) -> State:  # FastAPI runs what is not async in a thread
    found: State = request.app.state.service
    return found


async def identified(request: Request) -> Caller:
    """The caller, not counted. 401 as `Keys.caller` says."""
    address = request.client.host if request.client else "unknown"
    return (await state_of(request)).keys.caller(request.headers.get(KEY_HEADER), address)


async def admitted(request: Request, caller: Annotated[Caller, Depends(identified)]) -> Caller:
    """The caller, whose request counts; the answer tells what is left of the minute."""
    quota = await (await state_of(request)).limiter.admit(caller)
    request.state.quota = quota
    return caller


def quota_headers(quota: Quota) -> dict[str, str]:
    return {
        "X-RateLimit-Limit": str(quota.limit),
        "X-RateLimit-Remaining": str(quota.remaining),
        "X-RateLimit-Reset": str(round(quota.reset_at_s)),
    }


ServiceState = Annotated[State, Depends(state_of)]
Known = Annotated[Caller, Depends(identified)]
Admitted = Annotated[Caller, Depends(admitted)]
KNOWN = Depends(identified)
"""For routes that check the key and need no name."""
ADMITTED = Depends(admitted)
