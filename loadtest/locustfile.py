"""Locust's part: users that send a scenario's requests, over gRPC or HTTP, in a closed or an open loop.

`python -m loadtest` starts it. It also works with the command `locust` itself, with all of that one's options:
    locust -f loadtest/locustfile.py GrpcUser --grpc localhost:8001 --scenario mixed

Locust's statistics get rows of the method "stage" (as the server reports) and "sender" (how late requests were sent).
"""

from __future__ import annotations

import itertools
import math
import random
import signal
import time
import uuid
from functools import cache
from typing import Any

# Locust first: it replaces sockets and threads by gevent's before anybody else has taken hold of them.
import locust.stats
from locust import User, events, task
from locust.runners import MasterRunner, WorkerRunner
from locust.user.task import LOCUST_STATE_STOPPING

import gevent  # isort: skip
from gevent.lock import Semaphore  # isort: skip
from gevent.pool import Group  # isort: skip

# gRPC's own core has a switch for gevent, to be set before the first channel is opened.
import grpc.experimental.gevent  # isort: skip

grpc.experimental.gevent.init_gevent()
# There, each call under way waits in one of gevent's own threads, of which there are 10. With more calls an answer is
# noticed only when one of them is free: a refusal after a millisecond would seem to have taken as long as the queue.
gevent.get_hub().threadpool.maxsize = 2000

from loadtest.arrivals import poisson  # noqa: E402
from loadtest.figures import CODE, LATE, OUTSIDE, SENDER, STAGE  # noqa: E402
from loadtest.scenarios import MIXES, Ask, Mix, Sizes, endless  # noqa: E402
from loadtest.ways import NOT_SENT, Reply, Way  # noqa: E402

# Locust's own two digits would make 1,500 ms of 1,549, which a threshold has to tell apart.
locust.stats.bucket_response_time = lambda ms: float(f"{ms:.3g}")

IDLE_S = 0.2
DRAIN_S = 60.0  # of an open loop's last requests, when no more are sent
EXIT_S = 5
"""With gRPC's switch for gevent the interpreter's own end sometimes never comes; then the alarm ends it."""


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def _options(parser: Any) -> None:
    group = parser.add_argument_group("Cutaway")
    group.add_argument("--scenario", choices=list(MIXES), default="single")
    group.add_argument("--grpc", default="", metavar="HOST:PORT", help="where GrpcUser sends")
    group.add_argument("--http", default="", metavar="HOST:PORT", help="where HttpUser sends")
    group.add_argument("--loop", choices=("closed", "open"), default="closed")
    group.add_argument("--rate", type=float, default=1.0, help="open loop: requests per second of one user, on average")
    group.add_argument("--grow-s", type=float, default=0.0, help="open loop: the rate grows over so many seconds")
    group.add_argument(
        "--think-s", type=float, default=0.0, help="closed loop: a user's mean wait before the next request"
    )
    group.add_argument("--max-in-flight", type=int, default=500, help="open loop: requests of one user at once")
    group.add_argument("--megapixels", default="", help="sizes of pictures, such as 0.3,1,12")
    group.add_argument("--people", type=int, default=0, help="people in a crowd")
    group.add_argument("--timeout-s", type=float, default=60.0, help="for each request")
    group.add_argument("--requests", type=int, default=0, help="end after so many; 0 does not count")
    group.add_argument("--seed", type=int, default=1, help="of the requests' order and times")


USERS, SENT = itertools.count(), itertools.count(1)
"""Numbers in this process."""


@events.init.add_listener  # type: ignore[untyped-decorator]
def _init(environment: Any, runner: Any, **_: Any) -> None:
    environment.events.quit.add_listener(lambda **_: signal.alarm(EXIT_S))
    if isinstance(runner, WorkerRunner):
        runner.register_message("drain", _drain, concurrent=True)
    if isinstance(runner, MasterRunner):
        runner.register_message("drained", lambda msg, **_: DRAINING.discard(msg.node_id))
        environment.events.test_stopping.add_listener(_drain_workers)


# By itself the master leaves half a second after it has told its workers to end, while they still wait for answers. So
# before that it has them end their users, and waits until each has sent its last statistics.
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
    environment.runner._send_stats()
    environment.runner.send_message("drained")


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def _prepare(environment: Any, **_: Any) -> None:
    """Read the pictures before the first user is there."""
    options = environment.parsed_options
    if not isinstance(environment.runner, MasterRunner):
        _mix(options.scenario, options.megapixels, options.people)


@cache
def _mix(scenario: str, megapixels: str, people: int) -> Mix:
    """The requests, once for all users of this process."""
    return MIXES[scenario](Sizes.read(megapixels, people))


class Caller(User):  # type: ignore[misc]
    """Somebody who sends a scenario's requests."""

    abstract = True
    way: str

    def on_start(self) -> None:
        options = self.environment.parsed_options
        # Users of several processes differ as well, and the first of the only one is always the same.
        worker = max(0, getattr(self.environment.runner, "worker_index", 0))
        seed = options.seed * 1_000_003 + next(USERS) + 1009 * worker
        self._asks = endless(_mix(options.scenario, options.megapixels, options.people), seed)
        address = options.grpc if self.way == "gRPC" else options.http
        self._way = Way(self.way, address, options.timeout_s, options.max_in_flight if options.loop == "open" else 1)
        self._ids = (f"{uuid.uuid4().hex[:12]}-{number}" for number in itertools.count())
        self._open = options.loop == "open"
        self._under_way = Group()
        self._room = Semaphore(options.max_in_flight)
        arrivals = poisson(options.rate, seed, grow_s=options.grow_s) if self._open else ()
        gevent.sleep(self.wait_time())  # or all would begin at once
        begun_s = time.time()
        self._arrivals = (begun_s + at_s for at_s in arrivals)
        self._due_s, self._ended_s = next(self._arrivals, math.inf), 0.0

    def wait_time(self) -> float:
        return random.uniform(0.0, 2 * self.environment.parsed_options.think_s)

    def stop(self, force: bool = False) -> bool:
        self._ended_s = time.time()
        return bool(super().stop(force))

    def on_stop(self) -> None:
        while self._due_s < self._ended_s and not self.environment.parsed_options.requests:
            self._count_lost(self._due_s)  # the load test had no time for it at all
            self._due_s = next(self._arrivals)
        self._under_way.join(timeout=DRAIN_S)
        self._way.close()

    @task  # type: ignore[untyped-decorator]
    def turn(self) -> None:
        """One request of a closed loop; in an open one, the wait for the next arrival, which waits for no answer."""
        if not self._open:
            self._ask(time.time())
            return
        gevent.sleep(max(0.0, self._due_s - time.time()))
        if self._state != LOCUST_STATE_STOPPING:
            self._under_way.spawn(self._ask_in_turn, self._due_s)
            self._due_s = next(self._arrivals)

    def _ask_in_turn(self, intended_s: float) -> None:
        """Wait where too many are under way; the time counts from `intended_s` all the same."""
        with self._room:
            if self._state != LOCUST_STATE_STOPPING:
                self._ask(intended_s)
                return
        self._count_lost(intended_s)

    def _count_lost(self, intended_s: float) -> None:
        """That it was never sent must not vanish from the figures."""
        lost = Reply(NOT_SENT, "the load test itself had too many requests under way; raise --max-in-flight")
        self._count(next(self._asks), lost, intended_s)

    def _ask(self, intended_s: float) -> None:
        limit = self.environment.parsed_options.requests
        number = next(SENT)
        if limit and number > limit:
            gevent.sleep(IDLE_S)  # until the last one's answer is there, which ends the run
            return
        ask = next(self._asks)
        self._row(SENDER, LATE, (time.time() - intended_s) * 1000)
        self._count(ask, self._way.send(ask, next(self._ids)), intended_s)
        if limit and number == limit:
            gevent.spawn(self.environment.runner.quit)

    def _count(self, ask: Ask, reply: Reply, intended_s: float) -> None:
        """Tell Locust what came of a request, and how long it took from when it was to be sent."""
        latency_ms = (time.time() - intended_s) * 1000
        wrong = RuntimeError(f"{reply.code or 'served'}: {reply.message[:200]}")
        self.environment.events.request.fire(
            request_type=self._way.name,
            name=f"{ask.kind}{CODE}{reply.code}" if reply.code else ask.kind,
            response_time=latency_ms,
            response_length=reply.answered_bytes,
            exception=None if reply.code in ask.expects else wrong,
            context={},
        )
        if "total" in reply.stages_ms:
            for stage, ms in reply.stages_ms.items():
                self._row(STAGE, stage, ms)
            self._row(STAGE, OUTSIDE, latency_ms - reply.stages_ms["total"])

    def _row(self, method: str, name: str, ms: float) -> None:
        """Count in a row of its own, outside of Locust's total."""
        self.environment.stats.get(name, method).log(max(0.0, ms), 0)


class GrpcUser(Caller):
    """Over gRPC."""

    way = "gRPC"


class HttpUser(Caller):
    """Over HTTP."""

    way = "HTTP"
