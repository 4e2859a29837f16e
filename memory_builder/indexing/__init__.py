"""Trains, fills and tunes an index, and measures its recall through search."""
