"""Embed the pairs of a shard, or import published embeddings, and commit the result."""
