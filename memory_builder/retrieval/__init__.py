"""REACT, stage one: the pairs of a memory that a task's classes need, as a training subset."""
