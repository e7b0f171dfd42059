"""Answers to put into a cache, for tests and the processes that they start."""

from __future__ import annotations

import numpy as np


def answer(seed: int, n_bytes: int = 1000) -> dict[str, list[bytes] | np.ndarray]:
    """An answer that only this seed makes."""
    noise = np.random.default_rng(seed)
    return {
        "images": [noise.bytes(n_bytes), b"", b"\0\0"],
        "boxes": noise.random((2, 4), dtype=np.float32),
        "scores": np.zeros((0,), np.float32),
        "report": [b'{"seed": %d}' % seed],
    }


def same(one: dict | None, other: dict) -> bool:
    return (
        one is not None
        and one.keys() == other.keys()
        and all(
            np.array_equal(one[name], value, equal_nan=True)
            and one[name].dtype == value.dtype
            and one[name].shape == value.shape
            if isinstance(value, np.ndarray)
            else one[name] == value
            for name, value in other.items()
        )
    )
