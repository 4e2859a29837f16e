"""``memory-builder demo``: the main job over the bundled sample, and its report."""
