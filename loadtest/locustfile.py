"""Locust's part: users that send a scenario's requests, over gRPC or HTTP, in a closed or an open loop.

`python -m loadtest` starts it. It also works with the command `locust` itself, with all of that one's options:
    locust -f loadtest/locustfile.py GrpcUser --grpc localhost:8001 --scenario mixed
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import sys
import time
import uuid
from functools import cache
from pathlib import Path
from typing import Any, TextIO

# Locust first: it replaces sockets and threads by gevent's before anybody else has taken hold of them.
from locust import User, events, task
from locust.runners import MasterRunner, WorkerRunner
from locust.user.task import LOCUST_STATE_STOPPING

import gevent  # isort: skip
from gevent.lock import Semaphore  # isort: skip
from gevent.pool import Group  # isort: skip

# gRPC's own core knows nothing of those; it has a switch for gevent, to be set before the first channel is opened.
import grpc.experimental.gevent  # isort: skip

grpc.experimental.gevent.init_gevent()
# There, each call under way waits in one of gevent's own threads, of which there are 10. With more calls an answer is
# noticed only when one of them is free: a refusal after a millisecond would seem to have taken as long as the queue.
gevent.get_hub().threadpool.maxsize = 2000

from loadtest.arrivals import poisson  # noqa: E402
from loadtest.records import Record  # noqa: E402
from loadtest.scenarios import SCENARIOS, Ask, Mix, Sizes, endless  # noqa: E402
from loadtest.ways import NOT_SENT, Grpc, Http, Reply, Way  # noqa: E402

FLUSH_S = 0.5
IDLE_S = 0.2
DRAIN_S = 60.0
"""So long an open loop's last requests may take when no more are sent."""


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def _options(parser: Any) -> None:
    group = parser.add_argument_group("Cutaway")
    group.add_argument("--scenario", choices=list(SCENARIOS), default="single")
    group.add_argument("--grpc", default="", metavar="HOST:PORT", help="where GrpcUser sends")
    group.add_argument("--http", default="", metavar="HOST:PORT", help="where HttpUser sends")
    group.add_argument("--loop", choices=("closed", "open"), default="closed")
    group.add_argument("--rate", type=float, default=1.0, help="open loop: requests per second of one user, on average")
    group.add_argument("--grow-s", type=float, default=0.0, help="open loop: the rate grows over so many seconds")
    group.add_argument("--max-in-flight", type=int, default=500, help="open loop: requests of one user at once")
    group.add_argument("--megapixels", default="", help="sizes of pictures, such as 0.3,1,12")
    group.add_argument("--people", type=int, default=0, help="people in a crowd")
    group.add_argument("--timeout-s", type=float, default=60.0, help="for each request")
    group.add_argument(
        "--seconds", type=float, default=0.0, help="end so long after all users are there; 0 leaves it to --run-time"
    )
    group.add_argument("--requests", type=int, default=0, help="end after so many; 0 does not count")
    group.add_argument("--seed", type=int, default=1, help="of the requests' order and times")
    group.add_argument("--log", default="", metavar="FILE", help="a line for each request")


class Log:
    """Where records go: to the file, or, on a worker, to the master with Locust's own reports."""

    def __init__(self) -> None:
        self._file: TextIO | None = None
        self._waiting: list[dict[str, Any]] = []
        self._flush_at = 0.0

    def open(self, path: str) -> None:
        if path:
            self._file = Path(path).open("a")  # noqa: SIM115 - closed when the process ends

    def add(self, record: dict[str, Any]) -> None:
        if self._file is None:
            self._waiting.append(record)
            return
        self._file.write(json.dumps(record) + "\n")
        if time.monotonic() > self._flush_at:
            self.flush()

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()
            self._flush_at = time.monotonic() + FLUSH_S

    def hand_over(self) -> list[dict[str, Any]]:
        waiting, self._waiting = self._waiting, []
        return waiting


LOG = Log()
NUMBERS = itertools.count()
"""Of the users in this process."""
SENT = itertools.count(1)


@events.init.add_listener  # type: ignore[untyped-decorator]
def _init(environment: Any, runner: Any, **_: Any) -> None:
    environment.events.quit.add_listener(_leave)
    if isinstance(runner, WorkerRunner):
        environment.events.report_to_master.add_listener(_to_master)
        runner.register_message("drain", _drain, concurrent=True)
        return
    LOG.open(environment.parsed_options.log)
    seconds = environment.parsed_options.seconds
    if seconds:
        # Not Locust's --run-time: that counts from before the users are there, which on a busy machine takes a while.
        events.spawning_complete.add_listener(lambda **_: gevent.spawn_later(seconds, runner.quit))
    if isinstance(runner, MasterRunner):
        environment.events.worker_report.add_listener(_from_worker)
        runner.register_message("drained", _drained)
        environment.events.test_stopping.add_listener(_drain_workers)


def _leave(exit_code: int, **_: Any) -> None:
    """End at once, when Locust has said all that it has to say.

    With gRPC's switch for gevent the interpreter's own end sometimes never comes: threads wait for one another.
    """
    LOG.flush()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def _to_master(data: dict[str, Any], **_: Any) -> None:
    data["records"] = LOG.hand_over()


def _from_worker(data: dict[str, Any], **_: Any) -> None:
    for record in data.get("records", ()):
        LOG.add(record)
    LOG.flush()


# By itself the master leaves half a second after it has told its workers to end, while they still wait for answers. So
# before that it has them end their users, and waits until each has handed over its last records.
DRAINING: set[str] = set()


def _drain_workers(environment: Any, **_: Any) -> None:
    runner = environment.runner
    DRAINING.update(client.id for client in runner.clients.all)
    runner.send_message("drain")
    give_up_at = time.monotonic() + environment.stop_timeout + DRAIN_S
    while DRAINING & {client.id for client in runner.clients.all} and time.monotonic() < give_up_at:
        gevent.sleep(0.1)


def _drain(environment: Any, **_: Any) -> None:
    environment.runner.stop()
    environment.runner.send_message("drained", {"records": LOG.hand_over()})


def _drained(msg: Any, **_: Any) -> None:
    _from_worker(msg.data)
    DRAINING.discard(msg.node_id)


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def _prepare(environment: Any, **_: Any) -> None:
    """Read the pictures before the first user is there."""
    options = environment.parsed_options
    if not isinstance(environment.runner, MasterRunner):
        _mix(options.scenario, options.megapixels, options.people)


@cache
def _mix(scenario: str, megapixels: str, people: int) -> Mix:
    """The requests, once for all users of this process."""
    return SCENARIOS[scenario].mix(Sizes.read(megapixels, people))


class Caller(User):  # type: ignore[misc]
    """Somebody who sends a scenario's requests."""

    abstract = True

    def connect(self, options: Any) -> Way:
        raise NotImplementedError

    def on_start(self) -> None:
        options = self.environment.parsed_options
        # Users of several processes differ as well, and the first of the only one is always the same.
        seed = (
            options.seed * 1_000_003
            + next(NUMBERS)
            + 1009 * max(0, getattr(self.environment.runner, "worker_index", 0))
        )
        self._asks = endless(_mix(options.scenario, options.megapixels, options.people), seed)
        self._way = self.connect(options)
        self._ids = (f"{uuid.uuid4().hex[:12]}-{number}" for number in itertools.count())
        self._open = options.loop == "open"
        self._under_way = Group()
        self._room = Semaphore(options.max_in_flight)
        self._arrivals = poisson(options.rate, seed, grow_s=options.grow_s) if self._open else iter(())
        self._begun_s = time.time()

    def on_stop(self) -> None:
        self._under_way.join(timeout=DRAIN_S)
        self._way.close()
        LOG.flush()

    @task  # type: ignore[untyped-decorator]
    def turn(self) -> None:
        """One request of a closed loop; in an open one, the wait for the next arrival, which waits for no answer."""
        if not self._open:
            self._ask(time.time())
            return
        intended_s = self._begun_s + next(self._arrivals)
        gevent.sleep(max(0.0, intended_s - time.time()))
        if self._state != LOCUST_STATE_STOPPING:
            self._under_way.spawn(self._ask_in_turn, intended_s)

    def _ask_in_turn(self, intended_s: float) -> None:
        """Wait where too many are under way; the time counts from `intended_s` all the same."""
        with self._room:
            if self._state != LOCUST_STATE_STOPPING:
                self._ask(intended_s)
                return
        # That it was never sent must not vanish from the figures.
        lost = Reply(NOT_SENT, "the load test itself had too many requests under way; raise --max-in-flight")
        self._note(next(self._asks), lost, intended_s, time.time())

    def _ask(self, intended_s: float) -> None:
        limit = self.environment.parsed_options.requests
        number = next(SENT)
        if limit and number > limit:
            gevent.sleep(IDLE_S)  # until the last one's answer is there, which ends the run
            return
        ask = next(self._asks)
        sent_s = time.time()
        reply = self._way.send(ask, next(self._ids))
        self._note(ask, reply, intended_s, sent_s)
        if limit and number == limit:
            gevent.spawn(self.environment.runner.quit)

    def _note(self, ask: Ask, reply: Reply, intended_s: float, sent_s: float) -> None:
        """Log what came of a request, and tell Locust."""
        record = self._record(ask, reply, intended_s, sent_s)
        LOG.add(record.as_dict())
        self.environment.events.request.fire(
            request_type=record.way,
            name=record.kind,
            response_time=record.latency_ms,
            response_length=record.answered_bytes,
            exception=None if record.expected else RuntimeError(f"{reply.code or 'served'}: {reply.message}"),
            context={},
        )

    def _record(self, ask: Ask, reply: Reply, intended_s: float, sent_s: float) -> Record:
        expected = reply.code in ask.expects
        return Record(
            kind=ask.kind,
            way=self._way.name,
            code=reply.code,
            expected=expected,
            intended_s=intended_s,
            sent_s=sent_s,
            done_s=time.time(),
            sent_bytes=len(ask.data),
            answered_bytes=reply.answered_bytes,
            stages_ms=reply.stages_ms,
            message="" if expected else reply.message[:200],
        )


class GrpcUser(Caller):
    """Over gRPC."""

    def connect(self, options: Any) -> Way:
        return Grpc(_needed(options.grpc, "--grpc"), options.timeout_s)


class HttpUser(Caller):
    """Over HTTP."""

    def connect(self, options: Any) -> Way:
        connections = options.max_in_flight if options.loop == "open" else 1
        return Http(_needed(options.http, "--http"), options.timeout_s, connections)


def _needed(address: str, option: str) -> str:
    if not address:
        logging.error("%s HOST:PORT is needed", option)
        raise SystemExit(2)
    return address
