"""Evaluation sets: their layouts on disk, and their pictures and captions as embeddings."""
