"""The networks that are exported, as PyTorch modules of the project's own."""
