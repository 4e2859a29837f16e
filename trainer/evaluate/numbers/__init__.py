"""Metrics and their intervals, from scores alone."""
