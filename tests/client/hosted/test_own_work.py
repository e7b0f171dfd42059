"""What is computed here around a hosted call: nobody waits for it beyond the deadline, and no event loop at all.

1. Decoding and composing are given up at the deadline, and the provider's circuit breaker stays closed.
2. Composing many cut-outs ends where nobody waits for them any more.
3. An answer is not read in the event loop.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from cutaway.contract.errors import ProcessingTimeout
from cutaway.contract.options import parse_options
from cutaway.fallback import Fallback
from cutaway.resilience import Deadline

from tests.client.hosted.asking import hub
from tests.client.hosted.peers import HubScript, Peer, picture


@pytest.mark.parametrize(
    ("work", "words", "requests"),
    [("prepare", "while decoding the picture", 0), ("outputs_of", "while putting the cut-out together", 1)],
)
def test_own_work_is_given_up_at_the_deadline(
    work: str, words: str, requests: int, serve: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on in its thread and the caller has the error; the provider is not blamed."""
    peer, given_up, ended = serve(HubScript()), threading.Event(), threading.Event()

    def endless(*_: Any) -> None:
        given_up.wait(60)
        ended.set()

    monkeypatch.setattr(f"cutaway.fallback.chain.{work}", endless)
    fallback = Fallback([hub(peer)], fail_max=1)

    async def main() -> None:
        with pytest.raises(ProcessingTimeout, match=words) as caught:
            await fallback.infer(picture(), options=parse_options({}), deadline=Deadline(1.0))
        assert not ended.is_set()
        assert isinstance(caught.value.details["elapsed_seconds"], float)
        given_up.set()

    asyncio.run(main())
    assert len(peer.received) == requests
    assert fallback.breakers[0].state == "closed", "the provider has answered, or was not asked"


def test_cut_outs_that_nobody_waits_for_are_not_composed(
    serve: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    over, composed = threading.Event(), list[threading.Thread]()

    def finished(*_: Any) -> tuple[bytes, dict[str, Any]]:
        over.wait(60)
        composed.append(threading.current_thread())
        return b"", {}

    monkeypatch.setattr("cutaway.fallback.cutouts._finish", finished)
    fallback = Fallback([hub(serve(HubScript()))])
    boxes = [[number, 0, 160, 96] for number in range(20)]

    async def main() -> None:
        options = parse_options({"subject": "each", "boxes": boxes})
        with pytest.raises(ProcessingTimeout):
            await fallback.infer(picture(), options=options, deadline=Deadline(1.0))
        over.set()

    asyncio.run(main())
    while not composed:
        time.sleep(0.01)
    composed[0].join()
    assert len(composed) == 1


def test_the_answer_is_not_read_in_the_event_loop(serve: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch) -> None:
    from cutaway.fallback import answers

    threads: list[int] = []
    decode = answers.alpha_of

    def noting(*arguments: Any) -> Any:
        threads.append(threading.get_ident())
        return decode(*arguments)

    monkeypatch.setattr(answers, "alpha_of", noting)
    asyncio.run(hub(serve(HubScript())).matte(picture(), "image/png", Deadline(10)))
    assert len(threads) == 1
    assert threading.get_ident() not in threads
