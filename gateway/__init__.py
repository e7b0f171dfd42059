"""What stands in front of Triton: the gate, and the HTTP service."""
