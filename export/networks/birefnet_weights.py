"""Load a state dict by name, strictly, and say readably what does not fit."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from export import ExportError

LISTED_AT_MOST = 20

Shape = tuple[int, ...]


class Difference(NamedTuple):
    """How the entries of a state dict differ from those of a network; all three empty when they agree."""

    missing: list[str]
    unknown: list[str]
    reshaped: list[str]

    def __bool__(self) -> bool:
        return any(self)

    def __str__(self) -> str:
        """One heading and its keys, indented, for each kind of difference."""
        lines: list[str] = []
        for heading, keys in zip(("missing", "unknown", "of another shape"), self, strict=True):
            if keys:
                lines.append(f"{len(keys)} {heading}:")
                lines.extend(f"  {key}" for key in keys[:LISTED_AT_MOST])
            if len(keys) > LISTED_AT_MOST:
                lines.append(f"  … and {len(keys) - LISTED_AT_MOST} more")
        return "\n".join(lines)


class StateDictMismatch(ExportError, ValueError):
    """The state dict is not this network's.

    weights do not fit the network:
    1 missing:
      decoder.conv_out1.0.bias
    1 unknown:
      decoder.conv_out.bias
    """

    def __init__(self, difference: Difference) -> None:
        super().__init__(f"weights do not fit the network:\n{difference}")
        self.difference = difference


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, Shape]:
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def compare(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> Difference:
    """What `found` lacks, has beside, and has in another shape than `expected`, each in its owner's order."""

    def differently(keys: Iterable[str]) -> list[str]:
        return [f"{key}: {list(found[key])}, not {list(expected[key])}" for key in keys if found[key] != expected[key]]

    return Difference(
        missing=[key for key in expected if key not in found],
        unknown=[key for key in found if key not in expected],
        reshaped=differently(key for key in expected if key in found),
    )


def load_strict(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy every entry of `state` into `network`, converted to the network's own dtype.

    Raises:
        StateDictMismatch: before anything is copied, when a key is missing, unknown or of another shape.
    """
    difference = compare(shapes_of(network.state_dict()), shapes_of(state))
    if difference:
        raise StateDictMismatch(difference)
    network.load_state_dict(dict(state))
