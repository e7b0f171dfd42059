"""Figures of the matting network on held-out training pictures."""

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from export.nano.compose import MIN_ASPECT, SampleMaker
from export.nano.pictures import Image, Picture, PictureBank
from export.nano.soft_truth import held_out_shapes, over, soft_edges, unknown_band
from export.networks.modnet import MODNet

#: Context around a person's box, as a fraction of the box per side, as the pipeline gives it.
CONTEXT = 0.1
COMPOSITES = 48
COMPOSITE_SEED = 77
PORTRAITS = 48
SOFT = 48
SHARPNESS_TRIED = (1.0, 1.5, 2.0, 3.0)


def iou(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Intersection over union of two boolean masks; 1 where both are empty."""
    union = np.count_nonzero(first | second)
    return 1.0 if union == 0 else np.count_nonzero(first & second) / union


@torch.no_grad()
def predict(model: MODNet, image: Image, size_px: int) -> Image:
    """Alpha of an image, stretched to a square and back: uint8 RGB [H, W, 3] → uint8 [H, W]."""
    square = cv2.resize(image, (size_px, size_px), interpolation=cv2.INTER_AREA)
    batch = torch.from_numpy(square).permute(2, 0, 1)[None].float().div(255.0)
    batch = batch.contiguous(memory_format=torch.channels_last)
    alpha = (model(batch)[0, 0].float().sigmoid() * 255.0).round().byte().numpy()
    return cv2.resize(alpha, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_LINEAR)


def crop_rectangle(box: NDArray[np.int32], shape_hw: tuple[int, int]) -> tuple[int, int, int, int]:
    """The crop of a person's box with context and the least aspect: x0, y0, x1, y1 inside the picture."""
    x0, y0, x1, y1 = (float(value) for value in box)
    width, height = x1 - x0, y1 - y0
    grown_h = height * (1 + 2 * CONTEXT)
    grown_w = max(width * (1 + 2 * CONTEXT), MIN_ASPECT * grown_h)
    middle_x, middle_y = (x0 + x1) / 2, (y0 + y1) / 2
    return (
        max(0, round(middle_x - grown_w / 2)),
        max(0, round(middle_y - grown_h / 2)),
        min(shape_hw[1], round(middle_x + grown_w / 2)),
        min(shape_hw[0], round(middle_y + grown_h / 2)),
    )


def cropped_alpha(model: MODNet, picture: Picture, size_px: int) -> Image:
    """Union of the alphas of crops around every person, uint8 [H, W]."""
    height, width = picture.alpha.shape
    result = np.zeros((height, width), np.uint8)
    for person in picture.people():
        x0, y0, x1, y1 = crop_rectangle(picture.boxes[person - 1], (height, width))
        part = predict(model, picture.image[y0:y1, x0:x1], size_px)
        result[y0:y1, x0:x1] = np.maximum(result[y0:y1, x0:x1], part)
    return result


def soft_pictures(bank: PictureBank) -> list[tuple[Image, Image, NDArray[np.bool_]]]:
    """Held-out people with edges of held-out shapes, on held-out backgrounds: picture, alpha, band that is measured."""
    people = bank.held_out_heads + bank.held_out_ccp
    results = []
    for number in range(SOFT):
        picture = people[number * 7 % len(people)]
        colours, alpha = soft_edges(held_out_shapes(number), picture.colours, picture.alpha)
        empty = bank.held_out_backgrounds[number % len(bank.held_out_backgrounds)]
        height, width = alpha.shape
        results.append((over(cv2.resize(empty, (width, height)), colours, alpha), alpha, unknown_band(alpha)))
    return results


def sharpness_figures(model: MODNet, bank: PictureBank, size_px: int) -> dict[str, dict[str, float]]:
    """What multiplying the logits does to held-out pictures and composites, for each of `SHARPNESS_TRIED`.

    `…_mae`: mean absolute error of alpha (0 … 1); `…_haze`: share of pixels with an alpha between 0.05 and 0.95. The
    masks at half alpha stay what they are.
    """
    model.eval()
    maker = SampleMaker(bank, held_out=True)
    rng = np.random.default_rng(COMPOSITE_SEED)
    sources = {
        "ccp": [(picture.image, picture.alpha) for picture in bank.held_out_ccp],
        "head": [(picture.image, picture.alpha) for picture in bank.held_out_heads],
        "soft": [pair[:2] for pair in soft_pictures(bank)],
        "composite": [maker.sample(rng, 512, {"pasted": 1.0}) for _ in range(COMPOSITES)],
    }
    figures: dict[str, dict[str, float]] = {f"{sharpness:g}": {} for sharpness in SHARPNESS_TRIED}
    for name, samples in sources.items():
        pairs = [(predict(model, image, size_px) / 255.0, truth / 255.0) for image, truth in samples]
        for sharpness in SHARPNESS_TRIED:
            sharp = [(sharpen(alpha, sharpness), truth) for alpha, truth in pairs]
            row = figures[f"{sharpness:g}"]
            row[f"{name}_mae"] = float(np.mean([np.abs(alpha - truth).mean() for alpha, truth in sharp]))
            row[f"{name}_haze"] = float(np.mean([((alpha > 0.05) & (alpha < 0.95)).mean() for alpha, _ in sharp]))
    return figures


def sharpen(alpha: NDArray[np.float64], sharpness: float) -> NDArray[np.float64]:
    """The alpha, 0 to 1, that the same logits times `sharpness` give."""
    return alpha**sharpness / (alpha**sharpness + (1 - alpha) ** sharpness)


def held_out_figures(model: MODNet, bank: PictureBank, size_px: int) -> dict[str, float]:
    """IoU at half alpha against the masks of held-out pictures and fixed composites of them.

    `ccp_whole`, `coco_whole`: whole pictures. `ccp_crop`: the union of crops around the people.
    `ccp_mae`: mean absolute error of alpha (0 … 1) against the softened mask. `composite`: pasted people,
    mean and `_median`; `portrait`: crops of parts of held-out ccp pictures as they are. `head`: heads and shoulders,
    whole, against a teacher's alpha. `soft_mae`: of drawn soft edges, in the band about them.
    """
    model.eval()
    figures: dict[str, float] = {}
    whole, crops, errors = [], [], []
    for picture in bank.held_out_ccp:
        alpha = predict(model, picture.image, size_px)
        whole.append(iou(alpha >= 128, picture.alpha >= 128))
        errors.append(float(np.abs(alpha.astype(np.float32) - picture.alpha).mean()) / 255.0)
        crops.append(iou(cropped_alpha(model, picture, size_px) >= 128, picture.alpha >= 128))
    figures["ccp_whole"], figures["ccp_crop"] = float(np.mean(whole)), float(np.mean(crops))
    figures["ccp_mae"] = float(np.mean(errors))
    coco = [iou(predict(model, each.image, size_px) >= 128, each.alpha >= 128) for each in bank.held_out_coco]
    figures["coco_whole"] = float(np.mean(coco))
    alphas = [predict(model, each.image, size_px) for each in bank.held_out_heads]
    heads = [iou(found >= 128, each.alpha >= 128) for found, each in zip(alphas, bank.held_out_heads, strict=True)]
    figures["head"], figures["head_median"] = float(np.mean(heads)), float(np.median(heads))
    figures["head_mae"] = float(
        np.mean(
            [
                cv2.absdiff(found, each.alpha).mean() / 255
                for found, each in zip(alphas, bank.held_out_heads, strict=True)
            ]
        )
    )
    soft = [cv2.absdiff(predict(model, image, size_px), alpha)[band] for image, alpha, band in soft_pictures(bank)]
    figures["soft_mae"] = float(np.mean([each.mean() for each in soft if each.size])) / 255.0
    maker = SampleMaker(bank, held_out=True)
    for kind, name, count in (("pasted", "composite", COMPOSITES), ("ccp", "portrait", PORTRAITS)):
        rng = np.random.default_rng(COMPOSITE_SEED)
        values = []
        for _ in range(count):
            image, alpha = maker.sample(rng, 512, {kind: 1.0})
            values.append(iou(predict(model, image, size_px) >= 128, alpha >= 128))
        figures[name], figures[f"{name}_median"] = float(np.mean(values)), float(np.median(values))
    return figures
