"""REACT: gated blocks in a frozen CLIP, trained on retrieved pairs."""
