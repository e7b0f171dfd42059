"""How the bundled `nano` weights are trained: data, losses, training and evaluation."""
