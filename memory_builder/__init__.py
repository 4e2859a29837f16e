"""Build a searchable memory of image-text pairs, ask it, and customise a frozen CLIP with it.

``__init__.pyi`` lists the public names. Each is imported when it is first used: torch and faiss take seconds, which
``import memory_builder`` and ``memory-builder --help`` must not wait for.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"
