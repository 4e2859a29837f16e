"""Readers: sources (tar, parquet, CSV, folder, npy) in, image-text pairs or published embeddings out."""
