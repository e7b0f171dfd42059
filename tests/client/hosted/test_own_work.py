"""What is computed here around a hosted call: nobody waits for it beyond the deadline, and no event loop at all.

1. Decoding, reading the answer and composing end with the deadline, at most a tenth late, whatever the size.
2. A cancelled call, or one whose client is closed, ends at once; what was begun is undone.
3. The provider is not blamed for it.
"""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from cutaway.cancel import Cancel
from cutaway.contract.errors import ProcessingTimeout, RequestCancelled
from cutaway.contract.options import parse_options
from cutaway.fallback import Fallback
from cutaway.providers import Replicate
from cutaway.providers.apart import apart
from cutaway.providers.foreground import clean_colours
from cutaway.resilience import Deadline
from PIL import Image

from tests.client.hosted.asking import hub
from tests.client.hosted.peers import (
    HubScript,
    Peer,
    Received,
    ReplicateScript,
    Reply,
    Stopwatch,
    encoded,
    picture,
    png,
)

DRIVERS = ("threads", "asyncio")
PICTURE = encoded(Image.linear_gradient("L").resize((1600, 1200)).convert("RGB"), "image/jpeg")
MANY = {"subject": "each", "boxes": [[number, 0, 1600, 1200] for number in range(100)], "max_people": 100}
"""Decoded in no time; cut out a hundred times in twenty seconds."""


def soft_everywhere() -> Image.Image:
    """A square that is stretched to the picture's size: no pixel of it is cheap."""
    return Image.fromarray(np.random.default_rng(3).integers(60, 200, (512, 512), dtype=np.uint8))


def timed(driver: str, fallback: Fallback, data: bytes, deadline_s: float, **options: Any) -> tuple[float, Exception]:
    """How long it took until the error came, and the error."""
    parsed = parse_options(options)

    async def main() -> tuple[float, Exception]:
        watch = Stopwatch()
        with pytest.raises(ProcessingTimeout) as caught:
            await fallback.infer_async(data, options=parsed, deadline=Deadline(deadline_s))
        return watch.s, caught.value

    if driver == "asyncio":
        return asyncio.run(main())
    watch = Stopwatch()
    with pytest.raises(ProcessingTimeout) as caught:
        fallback.infer(data, options=parsed, deadline=Deadline(deadline_s))
    took = watch.s
    fallback.close()
    return took, caught.value


@pytest.mark.parametrize(("driver", "output"), [("threads", "webp"), ("asyncio", "png")])
def test_composing_ends_with_the_deadline(driver: str, output: str, serve: Callable[..., Peer]) -> None:
    """The answer comes at once, and what is still to be done takes too long."""
    peer = serve(HubScript(png(soft_everywhere())))
    fallback = Fallback([hub(peer)], fail_max=1)
    took, error = timed(driver, fallback, PICTURE, 1.5, output=output, **MANY)
    assert took <= 1.5 * 1.1
    assert "while putting the cut-out together" in str(error)
    assert isinstance(error.details["elapsed_seconds"], float)  # type: ignore[attr-defined]
    assert len(peer.received) == 1
    assert fallback.breakers[0].state == "closed", "the provider has answered"


@pytest.mark.parametrize("driver", DRIVERS)
def test_decoding_ends_with_the_deadline(driver: str, serve: Callable[..., Peer]) -> None:
    """A lossless picture that has to be encoded anew takes a second or more; nothing leaves, and nobody is blamed."""
    noise = np.random.default_rng(1).integers(0, 256, (1800, 2400, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(noise // 16 * 16).save(buffer, "PNG", compress_level=1, exif=exif)
    peer = serve(HubScript())
    fallback = Fallback([hub(peer)], fail_max=1)
    took, error = timed(driver, fallback, buffer.getvalue(), 0.4)
    assert took <= 0.4 * 1.1
    assert "while decoding the picture" in str(error)
    assert peer.received == []
    assert fallback.breakers[0].state == "closed"


def test_the_answer_is_not_read_in_the_event_loop(serve: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch) -> None:
    from cutaway.providers import base

    threads: list[int] = []
    decode = base.alpha_of

    def noting(*arguments: Any) -> Any:
        threads.append(threading.get_ident())
        return decode(*arguments)

    monkeypatch.setattr(base, "alpha_of", noting)
    provider = hub(serve(HubScript()))
    asyncio.run(provider.matte_async(picture(), "image/png", Deadline(10)))
    provider.matte(picture(), "image/png", Deadline(10))
    provider.close()
    assert len(threads) == 2
    assert threading.get_ident() not in threads


def test_a_busy_executor_does_not_hold_up_hosted_calls(serve: Callable[..., Peer]) -> None:
    fallback, free = Fallback([hub(serve(HubScript()))]), threading.Event()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        others = loop.run_in_executor(None, free.wait, 20)
        try:
            served = await fallback.infer_async(picture(), options=parse_options({}), deadline=Deadline(1.5))
            assert served.tier == 2
        finally:
            free.set()
            await others

    asyncio.run(main())


def test_a_cancel_ends_composing(serve: Callable[..., Peer]) -> None:
    answered, cancel = threading.Event(), Cancel()

    def answer(_: Received) -> Reply:
        answered.set()
        return png(soft_everywhere())

    fallback, options = Fallback([hub(serve(answer))], fail_max=1), parse_options(MANY)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(fallback.infer, PICTURE, options=options, deadline=Deadline(60), cancel=cancel)
        assert answered.wait(30)
        threading.Event().wait(0.2)
        watch = Stopwatch()
        cancel.cancel()
        assert isinstance(call.exception(20), RequestCancelled)
        assert watch.s < 0.5
    fallback.close()
    assert fallback.breakers[0].state == "closed"


def test_work_that_was_given_up_ends_at_its_next_check() -> None:
    begun, gone, ended = threading.Event(), threading.Event(), threading.Event()

    def work(check: Callable[[], None]) -> None:
        begun.set()
        gone.wait(20)
        try:
            check()
        except BaseException:
            ended.set()
            raise

    with pytest.raises(ProcessingTimeout, match=r"The 0\.2 s were over while thinking\."):
        apart(work, Deadline(0.2), "thinking")
    gone.set()
    assert begun.is_set()
    assert ended.wait(20)


# --------------------------------------------------------------------------------------------------- being closed


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("operation", ["infer", "upscale"])
def test_a_client_that_is_closed_ends_its_own_calls_only(
    operation: str, driver: str, serve: Callable[..., Peer]
) -> None:
    """Two clients share a chain; the prediction that nobody waits for any more is cancelled."""
    polled, script = threading.Semaphore(0), ReplicateScript(states=["starting"])

    def answer(received: Received) -> Reply:
        reply = script(received)
        if received.method == "GET":
            polled.release()
        return reply

    peer = serve(answer)
    script.base = peer.base_url
    fallback, closing, other = Fallback([Replicate(base_url=peer.base_url)], fail_max=1), Cancel(), Cancel()
    options: dict[str, Any] = {"options": parse_options({})} if operation == "infer" else {"scale": 2}

    def call(mine: Cancel) -> Any:
        if driver == "threads":
            return getattr(fallback, operation)(picture(), deadline=Deadline(30), closing=mine, **options)

        async def main() -> Any:
            ask = getattr(fallback, f"{operation}_async")
            return await ask(picture(), deadline=Deadline(30), closing=mine, **options)

        return asyncio.run(main())

    with ThreadPoolExecutor(2) as pool:
        mine, others = pool.submit(call, closing), pool.submit(call, other)
        for _ in range(4):
            assert polled.acquire(timeout=20)
        watch = Stopwatch()
        closing.cancel()
        error = mine.exception(20)
        assert isinstance(error, RequestCancelled)
        assert error.message == "The client was closed."
        assert watch.s < 5
        assert script.cancelled == 1
        assert not others.done()
        other.cancel()
        assert isinstance(others.exception(20), RequestCancelled)
    fallback.close()
    assert script.cancelled == 2
    assert fallback.breakers[0].state == "closed"


def test_a_caller_s_cancel_is_told_from_a_closed_client(serve: Callable[..., Peer]) -> None:
    fallback, cancel, closing = Fallback([hub(serve(HubScript(Reply(hang="before"))))]), Cancel(), Cancel()
    threading.Timer(0.3, cancel.cancel).start()
    with pytest.raises(RequestCancelled, match="The caller cancelled"):
        fallback.infer(picture(), options=parse_options({}), deadline=Deadline(30), cancel=cancel, closing=closing)
    fallback.close()
    assert not closing.cancelled


# -------------------------------------------------------------------------------------------------- the foreground


@pytest.mark.parametrize("kind", ["edge", "soft"])
def test_the_foreground_is_the_same_band_by_band(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many rows are worked on at once changes nothing."""
    rng = np.random.default_rng(5)
    rgb = np.asarray(Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).resize((301, 203)))
    y, x = np.mgrid[:203, :301]
    alpha = np.clip((70 - np.hypot(x - 150, y - 100)) * 20, 0, 255).astype(np.uint8)
    if kind == "soft":
        alpha = rng.integers(0, 256, alpha.shape, dtype=np.uint8)
    whole = clean_colours(rgb, alpha)
    monkeypatch.setattr("cutaway.providers.foreground.BAND_PX", 301 * 7)
    in_bands = clean_colours(rgb, alpha)
    assert np.abs(whole.astype(int) - in_bands).max() <= 2
    np.testing.assert_array_equal(in_bands[alpha == 255], rgb[alpha == 255])
