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
#: Half transparent pixels and those beside them weigh this much more again.
SOFT_GAIN = 3.0
LAPLACIAN_LEVELS, LAPLACIAN_WEIGHT = 4, 2.0


def edge_weight(alpha: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Weight of each pixel's loss, float32 [H, W] in [1, 9]; made by the data workers, where it is cheap.

    Args:
        alpha: uint8 [H, W].
    """
    values = alpha.astype(np.float32) / 255.0
    side = round(EDGE_BOX_PX * alpha.shape[0] / 384) | 1
    soft = cv2.dilate(((alpha > 5) & (alpha < 250)).astype(np.uint8), np.ones((3, 3), np.uint8))
    return 1.0 + EDGE_GAIN * np.abs(cv2.blur(values, (side, side)) - values) + SOFT_GAIN * soft


def soft_iou_loss(probability: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """1 - weighted IoU of each sample, mean; all float [N, 1, H, W]. Empty targets are handled by the +1.

    Overlap and union are the lesser and the greater alpha (Ruzicka's similarity): with products in their place, the
    best answer to a half transparent pixel would be 0 or 1.
    """
    overlap = (torch.minimum(probability, target) * weight).sum(dim=(1, 2, 3))
    union = (torch.maximum(probability, target) * weight).sum(dim=(1, 2, 3))
    return (1.0 - (overlap + 1.0) / (union + 1.0)).mean()


def laplacian_loss(probability: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of the bands of two Laplacian pyramids, each weighed by its size (Hou and Liu, 2019).

    Args:
        probability, target: float [N, 1, H, W] in [0, 1]; H and W are multiples of 16.
    """
    difference = probability - target  # the pyramid is linear
    loss = difference.new_zeros(())
    for level in range(LAPLACIAN_LEVELS):
        smaller = F.avg_pool2d(difference, 2)
        band = difference - F.interpolate(smaller, scale_factor=2.0, mode="bilinear", align_corners=False)
        loss = loss + 2**level * band.abs().mean()
        difference = smaller
    return loss


def matte_loss(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Weighted BCE, IoU and L1 and a Laplacian loss.

    Args:
        logits: float [N, 1, H, W].
        target: float [N, 1, H, W] in [0, 1].
        weight: float [N, 1, H, W], of `edge_weight`.
    """
    final = logits.float()
    probability = final.sigmoid()
    bce = (F.binary_cross_entropy_with_logits(final, target, reduction="none") * weight).sum() / weight.sum()
    l1 = ((probability - target).abs() * weight).sum() / weight.sum()
    laplacian = laplacian_loss(probability, target)
    return bce + soft_iou_loss(probability, target, weight) + l1 + LAPLACIAN_WEIGHT * laplacian


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
