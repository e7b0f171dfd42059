"""What is computed here around a hosted call: nobody waits for it beyond the deadline, and no event loop at all.

1. Decoding, reading the answer and composing end with the deadline, at most a tenth late, whatever the size.
2. The provider is not blamed for it.
"""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cutaway.contract.errors import ProcessingTimeout
from cutaway.contract.options import parse_options
from cutaway.fallback import Fallback
from cutaway.resilience import Deadline
from PIL import Image

from tests.client.hosted.asking import hub
from tests.client.hosted.peers import (
    HubScript,
    Peer,
    Stopwatch,
    encoded,
    picture,
    png,
)

PICTURE = encoded(Image.linear_gradient("L").resize((1600, 1200)).convert("RGB"), "image/jpeg")
MANY = {"subject": "each", "boxes": [[number, 0, 1600, 1200] for number in range(100)], "max_people": 100}
"""Decoded in no time; cut out a hundred times in twenty seconds."""


def soft_everywhere() -> Image.Image:
    """A square that is stretched to the picture's size: no pixel of it is cheap."""
    return Image.fromarray(np.random.default_rng(3).integers(60, 200, (512, 512), dtype=np.uint8))


def timed(fallback: Fallback, data: bytes, deadline_s: float, **options: Any) -> tuple[float, Exception]:
    """How long it took until the error came, and the error."""

    async def main() -> tuple[float, Exception]:
        watch = Stopwatch()
        with pytest.raises(ProcessingTimeout) as caught:
            await fallback.infer(data, options=parse_options(options), deadline=Deadline(deadline_s))
        return watch.s, caught.value

    return asyncio.run(main())


@pytest.mark.parametrize("output", ["webp", "png"])
def test_composing_ends_with_the_deadline(output: str, serve: Callable[..., Peer]) -> None:
    """The answer comes at once, and what is still to be done takes too long."""
    peer = serve(HubScript(png(soft_everywhere())))
    fallback = Fallback([hub(peer)], fail_max=1)
    took, error = timed(fallback, PICTURE, 1.5, output=output, **MANY)
    assert took <= 1.5 * 1.1
    assert "while putting the cut-out together" in str(error)
    assert isinstance(error.details["elapsed_seconds"], float)  # type: ignore[attr-defined]
    assert len(peer.received) == 1
    assert fallback.breakers[0].state == "closed", "the provider has answered"


def test_decoding_ends_with_the_deadline(serve: Callable[..., Peer]) -> None:
    """A lossless picture that has to be encoded anew takes a second or more; nothing leaves, and nobody is blamed."""
    noise = np.random.default_rng(1).integers(0, 256, (1800, 2400, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(noise // 16 * 16).save(buffer, "PNG", compress_level=1, exif=exif)
    peer = serve(HubScript())
    fallback = Fallback([hub(peer)], fail_max=1)
    took, error = timed(fallback, buffer.getvalue(), 0.4)
    assert took <= 0.4 * 1.1
    assert "while decoding the picture" in str(error)
    assert peer.received == []
    assert fallback.breakers[0].state == "closed"


def test_the_answer_is_not_read_in_the_event_loop(serve: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch) -> None:
    from cutaway.fallback import base

    threads: list[int] = []
    decode = base.alpha_of

    def noting(*arguments: Any) -> Any:
        threads.append(threading.get_ident())
        return decode(*arguments)

    monkeypatch.setattr(base, "alpha_of", noting)
    asyncio.run(hub(serve(HubScript())).matte(picture(), "image/png", Deadline(10)))
    assert len(threads) == 1
    assert threading.get_ident() not in threads
