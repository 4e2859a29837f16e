"""Finds copies of evaluation pictures among retrieved pairs (decontamination)."""
