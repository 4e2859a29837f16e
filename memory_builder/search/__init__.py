"""Queries in, hits out: vectors, filters, the open index. Writes nothing."""
