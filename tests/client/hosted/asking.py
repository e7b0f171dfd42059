"""Providers pointed at a peer, and what a right matte is."""

from __future__ import annotations

from typing import Any

import numpy as np
from cutaway.providers import HuggingFace, Matte
from cutaway.resilience import Deadline, RetryPolicy

from tests.client.hosted.peers import SIZE_WH, Peer, mask

QUICK = RetryPolicy(first_delay_s=0.01, max_delay_s=0.02)


def assert_right(result: Matte) -> None:
    expected = np.asarray(mask())
    assert result.alpha.dtype == np.uint8
    assert result.alpha.shape == (SIZE_WH[1], SIZE_WH[0])
    assert float(np.abs(result.alpha.astype(int) - expected).mean()) < 3
    assert result.elapsed_ms > 0


def hub(peer: Peer, **more: Any) -> HuggingFace:
    return HuggingFace(base_url=peer.base_url, accept_noncommercial=True, retry=QUICK, **more)


class Server:
    """Stands in for the own server: raises or answers, and keeps what it was asked and how long it might take."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.turns: list[float] = []

    async def __call__(self, turn: Deadline) -> Any:
        self.turns.append(turn.left_s)
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer
