"""Append, delete, compact, purge, verify and repair; each change is one new snapshot."""
