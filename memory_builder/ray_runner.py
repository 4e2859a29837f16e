"""``RayRunner``, under the library's own name; importing this imports ray."""

from cluster.runner import RayRunner

__all__ = ["RayRunner"]
