"""The served matting network as one that can be trained on: its ONNX file read back into PyTorch.

Batch normalisation is part of the convolutions there, and stays so: training goes on with fixed statistics, and a
step is quicker. What only training used, the coarse stages' own logits, is not in the file.
"""

import re
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from export.networks.nano import NanoMatte
from export.networks.yolov8 import ConvBlock
from export.rewrites import fold_deformable_norms, fold_norm, fold_patches

#: Nodes of one deformable convolution, of the stage and the branch.
DEFORMABLE = re.compile(r"/stages\.(\d)/aspp/branches\.(\d)/conv/(MatMul|Add)")


def fold_all(model: NanoMatte) -> NanoMatte:
    """Put every batch normalisation into the convolution before it, in place: the form that is served."""
    fold_deformable_norms(model)
    fold_patches(model)
    for module in list(model.modules()):
        if isinstance(module, ConvBlock) and isinstance(module.bn, nn.BatchNorm2d):
            module.conv, module.bn = fold_norm(module.conv, module.bn), nn.Identity()
        elif isinstance(module, nn.Sequential) and len(module) == 3 and isinstance(module[1], nn.BatchNorm2d):
            module[0], module[1] = fold_norm(module[0], module[1]), nn.Identity()
    return model.requires_grad_()


def load_served(path: Path) -> NanoMatte:
    """The network of a `birefnet_trt.onnx` that `export_nano_matte` wrote, normalisation folded, in float32.

    Raises:
        ValueError: the file holds another network.
    """
    model = fold_all(NanoMatte()).eval()
    convs: list[nn.Conv2d] = []
    hooks = [
        each.register_forward_hook(lambda module, _inputs, _output: convs.append(module))
        for name, each in model.named_modules()
        if isinstance(each, nn.Conv2d) and not name.endswith(".side")
    ]
    with torch.no_grad():
        model(torch.zeros(1, 3, 64, 64))
    for hook in hooks:
        hook.remove()
    graph = onnx.load(path).graph
    constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    nodes = [each for each in graph.node if each.op_type == "Conv"]
    if len(nodes) != len(convs):
        raise ValueError(f"{path} has {len(nodes)} convolutions, NanoMatte has {len(convs)}")
    with torch.no_grad():
        for node, conv in zip(nodes, convs, strict=True):
            for parameter, name in zip((conv.weight, conv.bias), node.input[1:], strict=True):
                _fill(parameter, constants[name])
        _fill_deformable(model, graph, constants)
    return model


def _fill_deformable(model: NanoMatte, graph: onnx.GraphProto, constants: dict[str, np.ndarray]) -> None:
    """A deformable convolution is a matrix product per group of taps, and a sum with the bias."""
    products: dict[tuple[int, int], list[np.ndarray]] = {}
    for node in graph.node:
        match = DEFORMABLE.search(node.name)
        names = [name for name in node.input if name in constants] if match else []
        if match is None or not names:
            continue
        stage, branch = int(match[1]), int(match[2])
        if match[3] == "MatMul":
            products.setdefault((stage, branch), []).append(constants[names[0]])
        elif constants[names[0]].ndim == 4:
            _fill(model.stages[stage].aspp.branches[branch].conv.regular_conv.bias, constants[names[0]].reshape(-1))
    for (stage, branch), parts in products.items():
        weight = model.stages[stage].aspp.branches[branch].conv.regular_conv.weight
        out_channels, channels = weight.shape[:2]
        taps = np.concatenate([part.reshape(out_channels, channels, -1) for part in parts], axis=2)
        _fill(weight, taps.reshape(weight.shape))


def _fill(parameter: Tensor, values: np.ndarray) -> None:
    if tuple(parameter.shape) != values.shape:
        raise ValueError(f"a weight of {values.shape} stands where {tuple(parameter.shape)} belongs")
    parameter.copy_(torch.from_numpy(np.array(values, np.float32)))
