"""What stands around a network in its ONNX graph, so that uint8 pictures travel and no client can get them wrong.

Normalisation, decoding, the choice of the best candidates, sigmoid and rounding: the inputs and outputs are those that
the model repository declares.
"""

import torch
from torch import Tensor, nn

from export.networks.yolov8 import YoloV8

DETECTOR_SIDE_PX = 640
#: Candidates that leave the detector, best first; suppression of overlaps is the caller's.
CANDIDATES = 300
DETECTOR_OUTPUTS = ("boxes", "scores", "classes", "coefficients", "prototypes")
MATTE_OUTPUTS = ("alphas",)
#: Mean and standard deviation of ImageNet's pictures, for RGB in [0, 1]: what BiRefNet was trained behind.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)


class DetectorGraph(nn.Module):
    """YOLOv8-seg from uint8 pictures to its best candidates."""

    def __init__(self, model: YoloV8) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Map letterboxed RGB, uint8 [N, 640, 640, 3], to the outputs of the model repository's `yolov8_seg`.

        Returns:
            boxes float32 [N, 300, 4] (x1, y1, x2, y2, letterboxed pixels), scores float32 [N, 300] (best class,
            descending), classes int32 [N, 300], coefficients float32 [N, 300, 32] and prototypes float32
            [N, 32, 160, 160].
        """
        detections = self.model(images.permute(0, 3, 1, 2).float() / 255.0)
        best, classes = detections.class_scores.max(dim=2)
        scores, order = best.topk(CANDIDATES, dim=1)
        boxes = detections.boxes.gather(1, order[..., None].expand(-1, -1, 4))
        coefficients = detections.coefficients
        coefficients = coefficients.gather(1, order[..., None].expand(-1, -1, int(coefficients.shape[2])))
        return boxes, scores, classes.gather(1, order).int(), coefficients, detections.prototypes


class MatteGraph(nn.Module):
    """A matting network from uint8 pictures to uint8 alpha.

    Args:
        model: maps float RGB [N, 3, S, S] in [0, 1] to logits [N, 1, S, S].
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Map RGB, uint8 [N, S, S, 3], to alpha, uint8 [N, S, S]."""
        logits = self.model(images.permute(0, 3, 1, 2).float() / 255.0)
        return (logits.squeeze(1).sigmoid() * 255.0).round().to(torch.uint8)


class BehindImageNet(nn.Module):
    """A network that was trained on pictures with ImageNet's statistics, for pictures as they are.

    Args:
        model: maps float RGB [N, 3, S, S], normalised with ImageNet's mean and deviation, to whatever it does.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).reshape(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor(IMAGENET_DEVIATION).reshape(1, 3, 1, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        """Map float RGB [N, 3, S, S] in [0, 1] to what the network says of it."""
        return self.model((pictures - self.mean) / self.deviation)
