"""``memory-builder demo``: embed, index and search the bundled sample, and write a report."""
