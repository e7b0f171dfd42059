"""What is asked of the server, scenario by scenario: one table, which `--help` and the documentation follow."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from loadtest import pictures

SERVED, OVERLOADED = "", "OVERLOADED"
"""The code of an answer that is no error, and that of load that was shed."""
DETECTION_OUTPUTS = ("boxes", "scores", "report")
CUT_OUTPUTS = ("images", *DETECTION_OUTPUTS)
PIPELINE = "ensemble_pipeline"
STREAMS = "stream_pipeline"


@dataclass(frozen=True)
class Ask:
    """One request: an encoded picture for an input of a model, parameters as they travel, the codes that are right
    answers (`SERVED` for a picture); where `framed`, one user's are frames of one stream with a correlation id."""

    kind: str
    data: bytes = field(repr=False)
    parameters: Mapping[str, str] = field(default_factory=dict)
    expects: frozenset[str] = frozenset({SERVED})
    outputs: tuple[str, ...] = CUT_OUTPUTS
    model: str = PIPELINE
    input: str = "image"
    framed: bool = False
    path: str = ""
    """Of the HTTP service, to which it goes as a form."""


Mix = Sequence[tuple[int, Ask]]
"""Requests with how often each comes, relative to the others."""


@dataclass(frozen=True)
class Sizes:
    """What the command line may change about the pictures; None leaves it to the scenario."""

    megapixels: tuple[float, ...] | None = None
    people: int | None = None

    @staticmethod
    def read(megapixels: str, people: int) -> Sizes:
        """From the command line's words: sizes with commas between, "" and 0 for nothing."""
        return Sizes(tuple(float(size) for size in megapixels.split(",")) if megapixels else None, people or None)

    def or_else(self, *megapixels: float) -> tuple[float, ...]:
        return self.megapixels or megapixels


def _single(sizes: Sizes) -> Mix:
    return [
        (1, Ask(f"one person, {size:g} MP", pictures.portrait(size, variant)))
        for size in sizes.or_else(1.0)
        for variant in range(2)
    ]


def _crowd(sizes: Sizes) -> Mix:
    people = sizes.people or 6
    return [(1, Ask(f"{people} people, {size:g} MP", pictures.crowd(people, size))) for size in sizes.or_else(2.0)]


def _each(sizes: Sizes) -> Mix:
    people = sizes.people or 4
    return [
        (1, Ask(f"each of {people}, {size:g} MP", pictures.crowd(people, size), {"subject": "each"}))
        for size in sizes.or_else(2.0)
    ]


def _products(sizes: Sizes) -> Mix:
    return [(1, Ask(f"thing, {size:g} MP", pictures.thing(size), {"subject": "all"})) for size in sizes.or_else(1.0)]


def _stream(_sizes: Sizes) -> Mix:
    """A camera's frames; a server without this model answers that it knows none such."""
    outputs = ("jpeg", "report")
    return [
        (1, Ask("frame, 640×480", pictures.frame(number), outputs=outputs, model=STREAMS, input="file", framed=True))
        for number in range(8)
    ]


def _mixed(sizes: Sizes) -> Mix:
    portraits = [(8, 0.3), (8, 1.0), (4, 4.0), (2, 12.0)]
    if sizes.megapixels is not None:
        portraits = [(22 // len(sizes.megapixels), size) for size in sizes.megapixels]
    small = sizes.or_else(1.0)[0]
    return [
        *((weight, Ask(f"one person, {size:g} MP", pictures.portrait(size))) for weight, size in portraits),
        *((2, ask) for _, ask in _crowd(sizes)),
        *((2, ask) for _, ask in _each(sizes)),
        *((2, ask) for _, ask in _products(sizes)),
        (2, Ask("green screen", pictures.portrait(small, 1), {"background": "#00FF00", "output": "webp"})),
        (2, Ask("mask", pictures.portrait(small, 2), {"output": "mask"})),
        (4, Ask("detection", pictures.portrait(small, 3), outputs=DETECTION_OUTPUTS)),
    ]


def _hostile(sizes: Sizes) -> Mix:
    good = [(8, ask) for _, ask in _single(Sizes(sizes.or_else(0.3, 1.0)))]
    bad = [(2, Ask(f"bad: {code}", data, expects=frozenset({code}))) for code, data in pictures.bad_files().items()]
    portrait = pictures.portrait(0.3)
    options = [
        (1, Ask("bad: INVALID_OPTION", portrait, wrong, frozenset({"INVALID_OPTION"})))
        for wrong in pictures.BAD_OPTIONS
    ]
    return [*good, *bad, *options]


def _overload(sizes: Sizes) -> Mix:
    refusable = frozenset({SERVED, OVERLOADED})
    return [(weight, Ask(ask.kind, ask.data, ask.parameters, refusable)) for weight, ask in _single(sizes)]


def _soak(sizes: Sizes) -> Mix:
    """All that there is, most of it small, so that thousands of requests end within minutes on a small machine."""
    size = sizes.or_else(0.3)[0]
    return [
        (40, Ask("detection", pictures.portrait(size), outputs=DETECTION_OUTPUTS)),
        (12, Ask(f"one person, {size:g} MP", pictures.portrait(size, 1))),
        (4, Ask("mask", pictures.portrait(size, 2), {"output": "mask"})),
        (4, Ask("green screen", pictures.portrait(size, 3), {"background": "#00FF00", "output": "webp"})),
        (2, Ask("4 MP", pictures.portrait(4.0))),
        (1, Ask("12 MP", pictures.portrait(12.0))),
        (2, Ask("thing", pictures.thing(size), {"subject": "all"})),
        (1, Ask("each of 4", pictures.crowd(4, 1.0), {"subject": "each"})),
        *((weight, ask) for weight, ask in _hostile(sizes) if ask.kind.startswith("bad")),
    ]


def _gateway(sizes: Sizes) -> Mix:
    remove, detect = "/api/background-removal/remove", "/api/person-detection/detect"
    bad = pictures.bad_files()
    return [
        *(
            (6, Ask(f"remove, {size:g} MP", pictures.portrait(size), path=remove))
            for size in sizes.or_else(0.3, 0.3, 1.0, 4.0)
        ),
        (6, Ask("detect", pictures.portrait(0.3, 1), path=detect)),
        (2, Ask("mask of people", pictures.portrait(0.3), {"subject": "people", "output": "mask"}, path=remove)),
        *(
            (1, Ask(f"bad: {code}", bad[code], expects=frozenset({code}), path=remove))
            for code in ("INVALID_FORMAT", "CORRUPT_IMAGE", "RESOLUTION_TOO_SMALL", "IMAGE_BOMB")
        ),
    ]


_OWN = (_single, _crowd, _each, _products, _stream, _mixed, _hostile, _overload, _soak, _gateway)
MIXES: dict[str, Callable[[Sizes], Mix]] = {"ramp": _single, **{mix.__name__.lstrip("_"): mix for mix in _OWN}}


@dataclass(frozen=True)
class Scenario:
    """One row of the table; a phase of a run is one with what the command line changed.

    Attributes:
        loop: "closed": each user sends when the answer before is there. "open": requests arrive by chance (Poisson),
            whether or not the server keeps up.
        users: of a closed loop.
        rate: requests per second of an open loop, on average.
        ramp: users, or the rate, grow from nearly none over all the seconds.
        think_s: how long a user of a closed loop waits on average before it sends again.
        requests: it ends after so many instead; 0 does not count.
        phase: its name, where a run has several.
    """

    name: str
    help: str
    loop: Literal["closed", "open"] = "closed"
    users: int = 4
    rate: float = 1.0
    seconds: float = 30.0
    ramp: bool = False
    think_s: float = 0.0
    requests: int = 0
    phase: str = ""

    @property
    def title(self) -> str:
        return self.phase or self.name


_OVERLOAD = "one person; first as much as the server can do, then three times that (--factor)"
_STREAM = "frames of 640×480, each user a stream; the next one goes out when one is back"
_GATEWAY = "forms to the HTTP service: cut-outs, detections, refused files; users think for ten seconds (--think-s)"
SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario("single", "pictures of one person"),
        Scenario("crowd", "six people in each picture (--people), together in one cut-out"),
        Scenario("each", "four people in each picture (--people), a cut-out for each"),
        Scenario("products", "things instead of people (subject=all)"),
        Scenario("stream", _STREAM, users=2),
        Scenario("mixed", "sizes from 0.3 to 12 megapixels, all subjects, several forms of output"),
        Scenario("hostile", "bad files and options among good ones; a wrong error code is a failure"),
        Scenario("ramp", "one person; users, or the rate, grow over the time", users=12, ramp=True),
        Scenario("overload", _OVERLOAD, users=8, seconds=60.0),
        Scenario("gateway", _GATEWAY, users=50, seconds=120.0, think_s=10.0),
        Scenario("soak", "5,000 mixed and bad requests (--requests)", seconds=3600.0, requests=5000),
    )
}


def endless(mix: Mix, seed: int) -> Iterator[Ask]:
    """The requests of a mix for ever, each as often as it should come, in an order that `seed` decides.

    Each pass brings every request exactly as often as its weight says, so that short runs are comparable, too.
    """
    once = [ask for weight, ask in mix for _ in range(weight)]
    chance = random.Random(seed)
    return itertools.chain.from_iterable(chance.sample(once, len(once)) for _ in itertools.count())
