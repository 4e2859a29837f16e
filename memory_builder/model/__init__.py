"""The frozen CLIP: images and captions in, unit embeddings out."""
