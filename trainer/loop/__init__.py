"""The training loop and its parts: sampler, losses, gradient cache, optimizer, checkpoints, launch."""
