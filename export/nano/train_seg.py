"""Train the mask branches of YOLOv8n-seg; backbone, neck and detection branches stay the released detector's.

    python -m export.nano.train_seg --data ../shared/people --weights ../shared/weights/yolov8n.pt --out runs/nano

The frozen part is run once per scene and its results are kept in memory, so that a step costs only the branches.
`--init yolov8_seg.onnx` begins with the branches that are served instead of new ones. An interrupted run goes on where
it stopped when the same command is given again.
"""

import argparse
import copy
import re
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from export.nano.evaluate import iou
from export.nano.losses import box_mask_loss
from export.nano.pictures import load_bank
from export.nano.scenes import SIDE_PX, Scene, SceneMaker
from export.nano.training import AveragedWeights, Figures, cosine_factor, load_checkpoint, save_checkpoint
from export.networks.yolov8 import HEAD_LAYERS, ConvBlock, YoloV8
from export.rewrites import fold_norm
from export.weights_io import YOLOV8N_SHA256, load_ultralytics

PROTO_SIDE_PX = 160
WARMUP_STEPS = 20
LOSS_EVERY = 25
CHECKPOINT_EVERY = 100
CLIP_NORM = 3.0
AVERAGE_DECAY = 0.99
#: Anchors that learn a person's mask, at most, and how many of them one step uses.
ANCHORS_PER_PERSON = 10
ANCHORS_PER_STEP = 4
MIN_ANCHOR_IOU = 0.5
HELD_OUT_SCENES = 60
HELD_OUT_SEED = 99


class Scenes(Dataset[Scene]):
    """Scene number → scene; made from the seed and the number alone."""

    def __init__(self, maker: SceneMaker, seed: int, count: int) -> None:
        self.maker, self.seed, self.count = maker, seed, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Scene:
        if number >= self.count:
            raise IndexError(number)
        return self.maker.scene(np.random.default_rng((self.seed, number)))


@dataclass(frozen=True)
class Learned:
    """What is kept of a scene: features of the frozen part and what the branches should say.

    Attributes:
        features: three float16 [C, H, W], results of the layers that the head reads.
        targets: uint8 [n, 160, 160], each person's coverage.
        anchors: per person, int64 anchor numbers.
        boxes: per person, float32 [k, 4], the boxes these anchors predict, in prototype cells.
        trust: float32 [n].
    """

    features: list[Tensor]
    targets: Tensor
    anchors: list[Tensor]
    boxes: list[Tensor]
    trust: Tensor


def mask_branches(model: YoloV8) -> nn.ModuleList:
    """What is trained."""
    return nn.ModuleList([model.head.cv4, model.head.proto])


def fold_blocks(model: nn.Module) -> nn.Module:
    """Put the batch normalisation of YOLO's blocks into their convolutions, in place: training goes on with fixed
    statistics."""
    for module in list(model.modules()):
        if isinstance(module, ConvBlock) and isinstance(module.bn, nn.BatchNorm2d):
            module.conv, module.bn = fold_norm(module.conv, module.bn), nn.Identity()
    return model.requires_grad_()


@torch.no_grad()
def load_served_branches(model: YoloV8, path: Path) -> None:
    """Fill the mask branches, in place, from a `yolov8_seg.onnx` that `export_detector` wrote; their norms are folded.

    Raises:
        ValueError: the file holds another network.
    """
    branches = fold_blocks(mask_branches(model))
    convs = [each for each in branches.modules() if isinstance(each, nn.Conv2d | nn.ConvTranspose2d)]
    graph = onnx.load(path).graph
    constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    # Tracing keeps the modules' order.
    nodes = [node for node in graph.node if re.match(r"/model/(cv4|proto).*/Conv(Transpose)?$", node.name)]
    for conv, node in zip(convs, nodes, strict=True):
        for parameter, constant in zip((conv.weight, conv.bias), node.input[1:], strict=True):
            if tuple(parameter.shape) != constants[constant].shape:
                raise ValueError(f"{node.name} of {path} has weights of {constants[constant].shape}")
            parameter.copy_(torch.from_numpy(constants[constant].copy()))


def box_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU of all pairs of boxes, float [n, 4] and [m, 4] (x1, y1, x2, y2) → [n, m]."""
    low = torch.maximum(first[:, None, :2], second[None, :, :2])
    high = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    overlap = (high - low).clamp(min=0).prod(dim=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1) for boxes in (first, second)]
    return overlap / (areas[0][:, None] + areas[1][None, :] - overlap).clamp(min=1e-6)


def as_batch(images: list[np.ndarray]) -> Tensor:
    """uint8 RGB [H, W, 3] each → float [N, 3, H, W] in [0, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().div_(255.0)


@torch.no_grad()
def learn_from(model: YoloV8, scene: Scene) -> Learned | None:
    """Run the frozen part on a scene and choose the anchors; none where no person was detected."""
    results = model.layers(as_batch([scene.image]))
    features = [results[index] for index in HEAD_LAYERS]
    detections = model.detect(features)
    boxes, scores = detections.boxes[0], detections.class_scores[0, :, 0]
    overlaps = box_iou(torch.from_numpy(scene.boxes), boxes)
    # An anchor learns only the person whom it fits best.
    own = overlaps.argmax(dim=0) if len(overlaps) else None
    targets, anchors, anchor_boxes, trust = [], [], [], []
    for person, mask in enumerate(scene.masks):
        fit = scores.sqrt() * overlaps[person] ** 6
        fit[(overlaps[person] < MIN_ANCHOR_IOU) | (own != person)] = 0.0
        best = fit.topk(ANCHORS_PER_PERSON)
        chosen = best.indices[best.values > 0.0]
        if len(chosen) == 0:
            continue
        coverage = cv2.resize(mask.astype(np.uint8) * 255, (PROTO_SIDE_PX,) * 2, interpolation=cv2.INTER_AREA)
        targets.append(torch.from_numpy(coverage))
        anchors.append(chosen)
        anchor_boxes.append(boxes[chosen] * (PROTO_SIDE_PX / SIDE_PX))
        trust.append(float(scene.trust[person]))
    if not targets:
        return None
    kept = [each[0].half() for each in features]
    return Learned(kept, torch.stack(targets), anchors, anchor_boxes, torch.tensor(trust))


def inside_boxes(boxes: Tensor) -> Tensor:
    """float [K, 160, 160], 1 inside each box (x1, y1, x2, y2 in cells), 0 elsewhere."""
    centres = torch.arange(PROTO_SIDE_PX) + 0.5
    columns = (centres >= boxes[:, 0:1]) & (centres < boxes[:, 2:3])
    rows = (centres >= boxes[:, 1:2]) & (centres < boxes[:, 3:4])
    return (rows[:, :, None] & columns[:, None, :]).float()


def batch_loss(model: YoloV8, batch: list[Learned], rng: np.random.Generator) -> Tensor:
    """Mask loss of a batch; a few random anchors of every person."""
    features = [torch.stack([each.features[level] for each in batch]).float() for level in range(len(HEAD_LAYERS))]
    with torch.autocast("cpu", torch.bfloat16):
        coefficients, prototypes = model.masks(
            [each.contiguous(memory_format=torch.channels_last) for each in features]
        )
    coefficients, prototypes = coefficients.float(), prototypes.float().flatten(2)
    total, weight = torch.zeros(()), 0.0
    for index, learned in enumerate(batch):
        for person in range(len(learned.anchors)):
            count = len(learned.anchors[person])
            pick = torch.from_numpy(rng.permutation(count)[:ANCHORS_PER_STEP])
            logits = coefficients[index, learned.anchors[person][pick]] @ prototypes[index]
            logits = logits.reshape(-1, PROTO_SIDE_PX, PROTO_SIDE_PX)
            target = (learned.targets[person].float() / 255.0).expand_as(logits)
            trust = float(learned.trust[person])
            total = total + trust * box_mask_loss(logits, target, inside_boxes(learned.boxes[person][pick]))
            weight += trust
    return total / weight


@torch.no_grad()
def held_out_figures(model: YoloV8, scenes: list[Scene]) -> dict[str, float]:
    """Recall (score ≥0.35, box IoU ≥0.5) and mask IoU at 640 px of the best detection of each person found.

    `composite`: people pasted with very good masks; `coco`: coarse polygons.
    """
    model.eval()
    values: dict[str, list[float]] = {"composite": [], "coco": []}
    people = found = 0
    for scene in scenes:
        detections = model(as_batch([scene.image]))
        boxes, scores = detections.boxes[0], detections.class_scores[0, :, 0]
        overlaps = box_iou(torch.from_numpy(scene.boxes), boxes) * (scores >= 0.35)
        people += len(scene.boxes)
        for person, mask in enumerate(scene.masks):
            good = overlaps[person] >= 0.5
            if not bool(good.any()):
                continue
            found += 1
            anchor = int((scores * good).argmax())
            logits = detections.coefficients[0, anchor] @ detections.prototypes[0].flatten(1)
            logits = logits.reshape(1, 1, PROTO_SIDE_PX, PROTO_SIDE_PX)
            large = F.interpolate(logits, size=(SIDE_PX, SIDE_PX), mode="bilinear", align_corners=False)[0, 0]
            predicted = np.zeros((SIDE_PX, SIDE_PX), bool)
            x0, y0, x1, y1 = (int(value) for value in boxes[anchor].round().clamp(0, SIDE_PX))
            predicted[y0:y1, x0:x1] = large[y0:y1, x0:x1].numpy() > 0
            name = "composite" if scene.trust[person] == 1.0 else "coco"
            values[name].append(iou(predicted, mask))
    figures = {name: float(np.mean(each)) for name, each in values.items() if each}
    return {"recall": found / max(1, people), **figures}


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the mask branches of YOLOv8n-seg for people.")
    parser.add_argument("--data", type=Path, default=Path("../shared/people"), help="photographs with masks")
    parser.add_argument("--weights", type=Path, default=Path("../shared/weights/yolov8n.pt"))
    parser.add_argument("--init", type=Path, default=None, help="yolov8_seg.onnx whose branches to begin with")
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoint and figures")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--figures-every", type=int, default=250, help="steps between held-out figures")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="processes that make scenes")
    parser.add_argument("--limit", type=int, default=None, help="pictures per source, for a smoke run")
    return parser.parse_args(arguments)


def train(options: argparse.Namespace) -> YoloV8:
    """Run the training and return the averaged model."""
    torch.manual_seed(options.seed)
    cv2.setNumThreads(0)  # a forked worker must not inherit OpenCV's thread pool
    torch.set_num_threads(options.threads)
    bank = load_bank(options.data, options.limit)
    model = YoloV8("n")
    missing = model.load_state_dict(load_ultralytics(options.weights, YOLOV8N_SHA256), strict=False).missing_keys
    assert all(name.startswith(("model.22.cv4.", "model.22.proto.")) for name in missing), missing
    model = model.to(memory_format=torch.channels_last).eval().requires_grad_(False)
    if options.init is not None:
        load_served_branches(model, options.init)
    held_out_maker = SceneMaker(bank.held_out_ccp, bank.held_out_coco, bank.held_out_backgrounds)
    held_out = [held_out_maker.scene(np.random.default_rng((HELD_OUT_SEED, n))) for n in range(HELD_OUT_SCENES)]
    scenes = Scenes(SceneMaker(bank.ccp, bank.coco, bank.backgrounds), options.seed, options.scenes)
    loader = DataLoader(scenes, batch_size=None, num_workers=options.workers)
    kept = [learned for scene in tqdm(loader, unit="scene") if (learned := learn_from(model, scene)) is not None]
    print(f"{len(kept)} scenes, {sum(len(each.anchors) for each in kept)} people", flush=True)

    branches = mask_branches(model).requires_grad_(True)
    optimizer = torch.optim.AdamW(branches.parameters(), lr=options.lr, weight_decay=1e-3)
    average = AveragedWeights(branches, AVERAGE_DECAY)
    averaged = copy.deepcopy(model)
    averaged_branches = mask_branches(averaged)
    checkpoint_path = options.out / "seg.pt"
    first, earlier = 0, None
    if (checkpoint := load_checkpoint(checkpoint_path)) is not None:
        branches.load_state_dict(checkpoint["branches"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        average.state = checkpoint["average"]
        first, earlier = checkpoint["step"], checkpoint["figures"]
    shown = {key: value for key, value in vars(options).items() if not isinstance(value, Path)}
    figures = Figures("export.nano.train_seg", shown, earlier)
    losses: list[float] = []
    if options.init is not None and first == 0:
        figures.held_out(0, values := held_out_figures(averaged, held_out))
        print(f" at the start: {values}", flush=True)
    for step in tqdm(range(first, options.steps), unit="step", mininterval=2.0):
        epoch, place = divmod(step * options.batch, max(1, len(kept) // options.batch * options.batch))
        order = np.random.default_rng((options.seed, 1, epoch)).permutation(len(kept))
        batch = [kept[index] for index in order[place : place + options.batch]]
        for group in optimizer.param_groups:
            group["lr"] = options.lr * cosine_factor(step, options.steps, WARMUP_STEPS)
        branches.train()
        loss = batch_loss(model, batch, np.random.default_rng((options.seed, 2, step)))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(branches.parameters(), CLIP_NORM)
        optimizer.step()
        average.update(branches, step)
        losses.append(float(loss.detach()))
        done = step + 1
        if done % LOSS_EVERY == 0:
            figures.loss(done, float(np.mean(losses)))
            print(f" step {done} loss {np.mean(losses):.4f}", flush=True)
            losses.clear()
        if done % options.figures_every == 0 or done == options.steps:
            averaged_branches.load_state_dict(average.state)
            values = held_out_figures(averaged, held_out)
            figures.held_out(done, values)
            print(f" step {done} held out: {values}", flush=True)
        if done % CHECKPOINT_EVERY == 0 or done == options.steps:
            content = {
                "branches": branches.state_dict(),
                "average": average.state,
                "optimizer": optimizer.state_dict(),
                "step": done,
                "figures": figures.finish(),
            }
            save_checkpoint(checkpoint_path, content)
            figures.write(options.out, "seg")
    averaged_branches.load_state_dict(average.state)
    return averaged.eval()


if __name__ == "__main__":
    train(parse_options())
