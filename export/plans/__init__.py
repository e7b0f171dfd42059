"""From ONNX files to TensorRT plans; `export.plan` is the command.

graph: what TensorRT wants of a graph. builder: TensorRT's own API. watching: its log and its progress. running: a plan
on the GPU. pictures and gate: whether a plan computes what its network does.
"""
