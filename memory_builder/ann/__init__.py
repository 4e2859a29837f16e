"""faiss objects and their files: k-means, quantizer, parts, inverted lists. Knows no query."""
