"""Files on any fsspec filesystem: atomic puts, locks, range reads, formats and records. Knows no pair."""
