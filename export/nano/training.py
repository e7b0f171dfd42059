"""What both training scripts share: schedule, averaged weights, checkpoints, figures."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm


def cosine_factor(step: int, steps: int, warmup: int) -> float:
    """Learning-rate factor in (0, 1]: a linear rise over `warmup` steps, then half a cosine down to 0.01."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * progress))


class AveragedWeights:
    """Exponential moving average of a model's floating-point state.

    Args:
        model: the model that is trained.
        decay: share kept per step; it starts lower and rises, so that the random start is soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state: dict[str, Tensor] = {name: value.clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the model's weights after `step`."""
        decay = min(self.decay, (1.0 + step) / (10.0 + step))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.state[name].lerp_(value, 1.0 - decay)
            else:
                self.state[name].copy_(value)


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint so that an interruption leaves the last one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(content, partial)
    partial.replace(path)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint of `save_checkpoint`, or none where there is none."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


def batches(dataset: Dataset[Any], first: int, steps: int, workers: int) -> Iterator[Any]:
    """Items `first` … `steps - 1` of a dataset of ready batches, in order, with a progress bar.

    Every batch is made from the seed and its number alone: neither the number of workers nor an interruption
    changes what is learned from.
    """
    order: Sequence[int] = range(first, steps)
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=order,
        num_workers=workers,
        prefetch_factor=3 if workers else None,
    )
    yield from tqdm(loader, initial=first, total=steps, unit="step", mininterval=2.0, dynamic_ncols=True)


class Figures:
    """The record of one training: what was asked, loss and held-out figures by step, seconds.

    Args:
        script: name of the script.
        options: its options by name.
        earlier: the record of the run that is resumed.
    """

    def __init__(self, script: str, options: dict[str, Any], earlier: dict[str, Any] | None = None) -> None:
        self.record: dict[str, Any] = earlier or {"script": script, "loss": [], "held_out": [], "wall_s": 0.0}
        self.record["options"] = options
        self._before_s = float(self.record["wall_s"])
        self._start_s = time.monotonic()

    def loss(self, step: int, value: float) -> None:
        """Add the mean loss of the last steps."""
        self.record["loss"].append([step, round(value, 4)])

    def held_out(self, step: int, values: dict[str, float]) -> None:
        """Add held-out figures."""
        self.record["held_out"].append({"step": step, **{name: round(value, 4) for name, value in values.items()}})

    def finish(self) -> dict[str, Any]:
        """Bring the wall time up to date and return the record."""
        self.record["wall_s"] = round(self._before_s + time.monotonic() - self._start_s, 1)
        return self.record

    def write(self, folder: Path, name: str) -> None:
        """Write `name`.json and `name`.md in `folder`."""
        record = self.finish()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
        lines = [f"# {record['script']}", "", f"Wall time {record['wall_s'] / 60:.1f} min.", ""]
        options = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in record["options"].items())
        lines += [f"Options: `{options}`", ""]
        if record["held_out"]:
            names = list(record["held_out"][-1])
            lines += ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
            lines += ["| " + " | ".join(str(row.get(key, "")) for key in names) + " |" for row in record["held_out"]]
        (folder / f"{name}.md").write_text("\n".join(lines) + "\n")
