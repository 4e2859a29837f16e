"""REACT, stage 1: retrieve the pairs most relevant to class names, as a training subset."""
