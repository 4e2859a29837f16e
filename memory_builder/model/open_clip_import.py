"""Import open_clip without torch's compiler (four seconds) and timm's models, which no forward pass needs.

torchvision's RoI operators and timm's newest models import the compiler, and nothing here calls either. open_clip
itself works without timm; its towers made by timm get it when one is made.
"""

import sys
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo.utils"


def import_open_clip() -> Any:
    """Return the module ``open_clip``; the first import decides which parts are loaded."""
    if "open_clip" not in sys.modules:
        if "torchvision" not in sys.modules:
            _import_torchvision()
        if "timm" not in sys.modules:
            sys.modules["timm"] = None  # type: ignore[assignment]  # an import of it fails, as where it is not installed
            try:
                import open_clip.timm_model
            finally:
                del sys.modules["timm"]
            _import_timm_with_its_towers(open_clip.timm_model)
    import open_clip

    return open_clip


def _import_torchvision() -> None:
    """Import torchvision, whose RoI operators then import the compiler when they are called, not before."""
    if COMPILER in sys.modules:
        return
    stand_in = ModuleType(COMPILER)
    setattr(stand_in, "is_compile_supported", _is_compile_supported)  # noqa: B010
    sys.modules[COMPILER] = stand_in
    try:
        import torchvision  # noqa: F401
    finally:
        del sys.modules[COMPILER]


def _is_compile_supported(device_type: str) -> bool:
    from torch._dynamo.utils import is_compile_supported

    return bool(is_compile_supported(device_type))


def _import_timm_with_its_towers(module: Any) -> None:
    """Make ``open_clip.timm_model`` import timm when it builds its first tower."""
    make = module.TimmModel.__init__

    def make_with_timm(tower: Any, *arguments: Any, **named: Any) -> None:
        if module.timm is None:
            import timm

            layers: Any = timm.layers
            module.timm = timm
            module.RotAttentionPool2d, module.AbsAttentionPool2d = layers.RotAttentionPool2d, layers.AttentionPool2d
            module.Mlp, module.to_2tuple = layers.Mlp, layers.to_2tuple
        make(tower, *arguments, **named)

    module.TimmModel.__init__ = make_with_timm
