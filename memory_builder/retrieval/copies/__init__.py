"""Decontamination: near duplicates of evaluation pictures among retrieved pairs."""
