"""The matting network's loss: what a pixel costs that is surely wrong."""

import torch

from export.nano.losses import matte_loss


def test_without_bce_a_surely_wrong_pixel_costs_no_more_for_being_surer() -> None:
    target = torch.zeros(1, 1, 32, 32)
    target[..., 16:, :] = 1
    sure = torch.where(target > 0.5, 9.0, -9.0)

    def added_cost(bce_share: float) -> float:
        wrong, surer = sure.clone(), sure.clone()
        wrong[..., 0, 0], surer[..., 0, 0] = 10.0, 40.0
        weight = torch.ones_like(target)
        return float(matte_loss(surer, target, weight, bce_share) - matte_loss(wrong, target, weight, bce_share))

    assert abs(added_cost(0.0)) < 1e-5
    assert 0.9 < added_cost(1.0) / (30 / 32**2) < 1.1
    assert 0.9 < added_cost(0.2) / (0.2 * 30 / 32**2) < 1.1
