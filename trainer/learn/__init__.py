"""Learning: advantages, loss, FP32 head and the optimizer step."""
