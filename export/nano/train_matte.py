"""Train the matting network on the photographs of people, from the published MODNet.

    python -m export.nano.train_matte --data ../shared/people --weights ../shared/weights/modnet.onnx --out runs/nano

An interrupted run goes on where it stopped when the same command is given again. `--init matte.pt` starts a new run
from the averaged weights of an earlier one.
"""

import argparse
import copy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from export.nano.compose import KINDS, SampleMaker
from export.nano.evaluate import held_out_figures
from export.nano.losses import edge_weight, matte_loss
from export.nano.pictures import load_bank
from export.nano.training import (
    AveragedWeights,
    Figures,
    batches,
    cosine_factor,
    load_checkpoint,
    save_checkpoint,
)
from export.networks.modnet import MODNet, load_published

WARMUP_STEPS = 40
LOSS_EVERY = 25
CHECKPOINT_EVERY = 50
CLIP_NORM = 3.0
AVERAGE_DECAY = 0.993


class Batches(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Batch number → uint8 images [B, S, S, 3], uint8 alphas [B, S, S], float16 loss weights [B, S, S]."""

    def __init__(self, maker: SampleMaker, options: argparse.Namespace) -> None:
        self.maker = maker
        self.batch, self.seed = options.batch, options.seed
        self.sizes_px = (options.size, options.final_size)
        self.switch_step = round(options.steps * (1.0 - options.final_share))
        self.kinds = {**KINDS, **dict(options.kind)}

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        rng = np.random.default_rng((self.seed, step))
        size_px = self.sizes_px[step >= self.switch_step]
        samples = [self.maker.sample(rng, size_px, self.kinds) for _ in range(self.batch)]
        images = np.stack([image for image, _ in samples])
        alphas = np.stack([alpha for _, alpha in samples])
        weights = np.stack([edge_weight(alpha) for alpha in alphas]).astype(np.float16)
        return torch.from_numpy(images), torch.from_numpy(alphas), torch.from_numpy(weights)


def kind_share(text: str) -> tuple[str, float]:
    """`coco=0.3` → ("coco", 0.3)."""
    kind, _, share = text.partition("=")
    if kind not in KINDS:
        raise argparse.ArgumentTypeError(f"{kind!r} is none of {', '.join(KINDS)}")
    return kind, float(share)


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the nano matting network.")
    parser.add_argument("--data", type=Path, default=Path("../shared/people"), help="photographs with masks")
    parser.add_argument(
        "--weights", type=Path, default=Path("../shared/weights/modnet.onnx"), help="MODNet as published"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoint and figures")
    parser.add_argument("--init", type=Path, help="checkpoint of an earlier run to start from")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=256, help="side of the square input, px")
    parser.add_argument("--final-size", type=int, default=320, help="side in the last steps, px")
    parser.add_argument("--final-share", type=float, default=0.6, help="share of steps at the final size")
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--backbone-lr-factor", type=float, default=0.35)
    parser.add_argument(
        "--kind",
        type=kind_share,
        action="append",
        default=[],
        metavar="KIND=SHARE",
        help=f"share of a kind of samples, instead of {KINDS}; may be repeated",
    )
    parser.add_argument("--figures-every", type=int, default=400, help="steps between held-out figures; 0: none")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2, help="processes that make samples")
    parser.add_argument("--limit", type=int, default=None, help="pictures per source, for a smoke run")
    return parser.parse_args(arguments)


def initial_model(options: argparse.Namespace) -> MODNet:
    """The network that training starts from."""
    model = load_published(options.weights)
    if options.init:
        model.load_state_dict(torch.load(options.init, map_location="cpu", weights_only=True)["average"])
    return model


def make_optimizer(model: MODNet, options: argparse.Namespace) -> torch.optim.AdamW:
    """AdamW; no decay on biases, a smaller rate for the backbone."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault((name.startswith("backbone."), parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "base_lr": options.lr * (options.backbone_lr_factor if backbone else 1.0),
                "weight_decay": 1e-2 if decayed else 0.0,
            }
            for (backbone, decayed), parameters in groups.items()
        ],
        lr=options.lr,
    )


def train(options: argparse.Namespace) -> MODNet:
    """Run the training and return the averaged model."""
    torch.manual_seed(options.seed)
    cv2.setNumThreads(0)  # a forked worker must not inherit OpenCV's thread pool
    torch.set_num_threads(options.threads)
    bank = load_bank(options.data, options.limit)
    maker = SampleMaker(bank)
    model = initial_model(options).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, options)
    average = AveragedWeights(model, AVERAGE_DECAY)
    checkpoint_path = options.out / "matte.pt"
    first, earlier = 0, None
    if (checkpoint := load_checkpoint(checkpoint_path)) is not None:
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        average.state = checkpoint["average"]
        first, earlier = checkpoint["step"], checkpoint["figures"]
        print(f"going on at step {first}")
    shown = {key: value for key, value in vars(options).items() if not isinstance(value, Path)}
    figures = Figures("export.nano.train_matte", shown, earlier)

    averaged = copy.deepcopy(model)

    def checkpoint_now(step: int) -> None:
        content: dict[str, Any] = {
            "model": model.state_dict(),
            "average": average.state,
            "optimizer": optimizer.state_dict(),
            "step": step,
            "figures": figures.finish(),
        }
        save_checkpoint(checkpoint_path, content)
        figures.write(options.out, "matte")

    losses: list[float] = []
    dataset = Batches(maker, options)
    for step, (images, alphas, weights) in enumerate(batches(dataset, first, options.steps, options.workers), first):
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * cosine_factor(step, options.steps, WARMUP_STEPS)
        pictures = images.permute(0, 3, 1, 2).float().div_(255.0)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(pictures)
        loss = matte_loss(logits, alphas[:, None].float().div_(255.0), weights[:, None].float())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        average.update(model, step)
        losses.append(float(loss.detach()))
        done = step + 1
        if done % LOSS_EVERY == 0:
            figures.loss(done, float(np.mean(losses)))
            print(f" step {done} loss {np.mean(losses):.4f}", flush=True)
            losses.clear()
        if options.figures_every and (done % options.figures_every == 0 or done == options.steps):
            averaged.load_state_dict(average.state)
            size_px = dataset.sizes_px[step >= dataset.switch_step]
            values = held_out_figures(averaged, bank, size_px)
            figures.held_out(done, {"size_px": size_px, **values})
            print(f" step {done} held out at {size_px}: {values}", flush=True)
        if done % CHECKPOINT_EVERY == 0 or done == options.steps:
            checkpoint_now(done)
    averaged.load_state_dict(average.state)
    return averaged.eval()


if __name__ == "__main__":
    train(parse_options())
