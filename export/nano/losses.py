"""Losses of the matting network and of the mask branches."""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

#: Pixels near an edge weigh up to this much more. The neighbourhood is a box of `EDGE_BOX_PX` at 384 px.
EDGE_GAIN = 5.0
EDGE_BOX_PX = 31
#: Weight of the coarse stages' losses, together with the mean over them.
SIDE_WEIGHT = 0.2


def edge_weight(alpha: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Weight of each pixel's loss, float32 [H, W] in [1, 6]; made by the data workers, where it is cheap.

    Args:
        alpha: uint8 [H, W].
    """
    values = alpha.astype(np.float32) / 255.0
    side = round(EDGE_BOX_PX * alpha.shape[0] / 384) | 1
    return 1.0 + EDGE_GAIN * np.abs(cv2.blur(values, (side, side)) - values)


def soft_iou_loss(probability: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """1 - weighted IoU of each sample, mean; all float [N, 1, H, W]. Empty targets are handled by the +1."""
    overlap = (probability * target * weight).sum(dim=(1, 2, 3))
    union = ((probability + target - probability * target) * weight).sum(dim=(1, 2, 3))
    return (1.0 - (overlap + 1.0) / (union + 1.0)).mean()


def matte_loss(logits: list[Tensor], target: Tensor, weight: Tensor) -> Tensor:
    """Weighted BCE, weighted IoU and weighted L1 at full size, and BCE and IoU at the coarse stages.

    Args:
        logits: of every stage, float [N, 1, h, w]; the last is full size.
        target: float [N, 1, H, W] in [0, 1].
        weight: float [N, 1, H, W], of `edge_weight`.
    """
    final = logits[-1].float()
    probability = final.sigmoid()
    bce = (F.binary_cross_entropy_with_logits(final, target, reduction="none") * weight).sum() / weight.sum()
    l1 = ((probability - target).abs() * weight).sum() / weight.sum()
    loss = bce + soft_iou_loss(probability, target, weight) + l1
    for side in logits[:-1]:
        coarse = side.float()
        wanted = F.adaptive_avg_pool2d(target, coarse.shape[2:])
        ones = torch.ones_like(wanted)
        part = F.binary_cross_entropy_with_logits(coarse, wanted) + soft_iou_loss(coarse.sigmoid(), wanted, ones)
        loss = loss + SIDE_WEIGHT * part
    return loss


def box_mask_loss(logits: Tensor, target: Tensor, inside: Tensor) -> Tensor:
    """BCE and Dice of instance masks inside their boxes, mean over instances.

    Args:
        logits: float [K, h, w].
        target: float [K, h, w] in [0, 1].
        inside: float [K, h, w], 1 inside the box of each.
    """
    area = inside.sum(dim=(1, 2)).clamp(min=1.0)
    bce = (F.binary_cross_entropy_with_logits(logits, target, reduction="none") * inside).sum(dim=(1, 2)) / area
    probability = logits.sigmoid() * inside
    overlap = (probability * target).sum(dim=(1, 2))
    dice = 1.0 - (2.0 * overlap + 1.0) / (probability.sum(dim=(1, 2)) + (target * inside).sum(dim=(1, 2)) + 1.0)
    return (bce + dice).mean()
