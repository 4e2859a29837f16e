"""Tasks that need no memory: zero-shot, retrieval, linear probe, fine-tuning."""
