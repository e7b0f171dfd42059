"""The application: routes, error forms, bounds, start and end."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Any

from cutaway import AsyncClient, __version__
from cutaway.contract.errors import CutawayError, InferenceError
from cutaway.contract.limits import PROCESSING_TIMEOUT_S
from cutaway.observers import Prometheus
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException

from gateway.core import Core
from gateway.service import avatar, background_removal, live, media, people, removebg
from gateway.service.engine import Engine
from gateway.service.errors import ServiceProblem, answer
from gateway.service.fetch import Fetcher
from gateway.service.jobs import Jobs
from gateway.service.keys import Keys, Limiter, Quota
from gateway.service.observing import Observed, jobs_entry
from gateway.service.settings import FORM_BYTES, MAX_REQUEST_BYTES, ServiceSettings
from gateway.service.state import State, quota_headers
from gateway.service.storage import Storage
from gateway.service.transport import CoreTransport
from gateway.service.uploads import Guard, Refused

log = logging.getLogger("gateway.service")

ENLARGING_TIMEOUT_S = 60.0
"""A provider has 30 s of its own, and a second one may be asked."""
_BATCHES = ("/api/background-removal/remove-batch", "/api/background-removal/remove-async")
_POLICY = "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; object-src 'none'"
_CSP = f"{_POLICY}; style-src 'self'"
_DOCS_CSP = f"{_POLICY}; style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline'"
"""FastAPI's page of the API has a script of its own in it."""


class Service:
    """The HTTP service, open: what its routes share, and its ASGI application."""

    def __init__(self, state: State) -> None:
        self.app = Observed(_app(state), state.engine.core.access)
        self._state = state
        self._sweep = asyncio.create_task(state.storage.sweep_regularly(), name="service-sweep")

    @classmethod
    async def open(cls, core: Core, settings: ServiceSettings) -> Service:
        """Begin to work on jobs.

        Raises:
            ValueError, OSError: a setting makes no sense; the file of keys cannot be read.
        """
        transport = CoreTransport(core)
        observers = core.tracing.observers()
        client = AsyncClient(transport=transport, timeout_s=PROCESSING_TIMEOUT_S, observers=observers)
        # A client of its own: pictures to be cut out never go to somebody else's server.
        tiers = hosted_tiers(settings.hosted)
        enlarger = None
        if tiers:
            counted = [*observers, Prometheus(core.metrics.registry)]
            enlarger = AsyncClient(
                transport=transport, timeout_s=ENLARGING_TIMEOUT_S, fallback=tiers, observers=counted
            )
        engine = Engine(client, core)
        storage = Storage(settings.storage, settings.storage_max_bytes, core.metrics)
        work = background_removal.remove_job(engine, storage)
        limits = settings.jobs, settings.job_timeout_s, settings.job_reclaim_s
        jobs = Jobs(work, settings.redis_url, *limits, jobs_entry(core.access), core.metrics)
        state = State(
            settings=settings,
            engine=engine,
            storage=storage,
            keys=Keys(settings),
            limiter=Limiter(settings.redis_url, core.metrics),
            jobs=jobs,
            enlarger=enlarger,
            fetcher=Fetcher(settings.image_hosts, settings.image_private),
        )
        try:
            await jobs.start()
        except RedisError as error:
            address = settings.redis_url.rpartition("@")[2]  # without a password
            raise ValueError(f"Redis at {address} does not answer: {error}") from None
        return cls(state)

    async def finish_jobs(self) -> None:
        """Begin no more jobs, and wait for those that were begun."""
        await self._state.jobs.finish()

    async def aclose(self) -> None:
        self._sweep.cancel()
        with suppress(asyncio.CancelledError):
            await self._sweep
        await self._state.jobs.aclose()
        await self._state.fetcher.aclose()
        for client in filter(None, (self._state.engine.client, self._state.enlarger)):
            await client.close()


def _app(state: State) -> FastAPI:
    settings, gate = state.settings, state.engine.core.settings
    app = FastAPIOffline(
        title="Cutaway",
        version=__version__,
        description="Cuts people and objects out of pictures. Errors: docs/errors.md.",
        docs_url="/api/docs",
        openapi_url="/api/openapi.json",
        redoc_url=None,
    )
    app.state.service = state
    for module in (background_removal, people, media, live, avatar, removebg):
        app.include_router(module.router)
    for kind in (CutawayError, ServiceProblem, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _failed)
    if gate.origins:
        app.add_middleware(CORSMiddleware, allow_origins=gate.origins, allow_methods=["*"], allow_headers=["*"])
    core = state.engine.core

    def headers(path: str, quota: Quota | None) -> dict[str, str]:
        return _headers(path, quota) | ({"Connection": "close"} if core.leaving else {})

    def bound(path: str) -> int:
        return settings.batch_max_bytes + FORM_BYTES if path in _BATCHES else MAX_REQUEST_BYTES

    app.add_middleware(Guard, admission=core.admission, bound=bound, headers=headers)
    app.mount("/page", StaticFiles(directory=settings.page), name="page")
    app.add_api_route("/", lambda: FileResponse(settings.page / "index.html"), include_in_schema=False)
    return app


def hosted_tiers(wanted: tuple[str, ...]) -> list[Any]:
    """Providers that enlarge, by NAME or NAME=URL, with their default models; tokens come from the environment.

    Raises:
        ValueError: there is none of this name.
    """
    from cutaway.providers import HuggingFace, Replicate

    # A Space's functions need more words than a name.
    known: dict[str, Any] = {each.name: each for each in (HuggingFace, Replicate)}
    pairs = [each.partition("=")[::2] for each in wanted]
    if unknown := [name for name, _ in pairs if name not in known]:
        raise ValueError(f"{unknown[0]!r} is no hosted provider that enlarges: there are {', '.join(known)}")
    return [known[name](base_url=url or known[name].default_url) for name, url in pairs]


async def _failed(request: Request, error: Exception) -> Response:
    """Any error in the form of its path's dialect."""
    path = request.scope["path"]
    match error:
        case CutawayError() | ServiceProblem():
            return answer(path, error)
        case Refused():
            return answer(path, error.problem)
        case RequestValidationError():
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"][1:]) or "the body"
            problem = ServiceProblem(400, "INVALID_OPTION", f"{where}: {first['msg']}.", "Correct it; see /api/docs.")
            problem.details = {"name": where}
            return answer(path, problem)
        case HTTPException():
            code = {404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED"}.get(error.status_code, "INVALID_REQUEST")
            problem = ServiceProblem(error.status_code, code, str(error.detail), "See /api/docs.")
            response = answer(path, problem)
            if error.status_code == 405:  # the framework names the methods of one route alone
                response.headers["Allow"] = ", ".join(sorted(_methods(request)))
            return response
    log.exception("a request to %s failed", path, exc_info=error)
    return answer(path, InferenceError("The request failed; the reason is in the service's log."))


def _methods(request: Request) -> set[str]:
    """The methods that the path has."""
    routes = [route for route in request.app.routes if isinstance(route, APIRoute)]
    return {method for route in routes if route.path_regex.match(request.url.path) for method in route.methods or ()}


def _headers(path: str, quota: Quota | None) -> dict[str, str]:
    """The headers of every answer."""
    policy = _DOCS_CSP if path == "/api/docs" else _CSP
    headers = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": policy}
    return headers | (quota_headers(quota) if quota else {})
