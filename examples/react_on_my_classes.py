r"""Customise a CLIP for your class names with REACT: retrieve pairs for them, train gated blocks, classify an image.

    uv run python examples/react_on_my_classes.py
    uv run python examples/react_on_my_classes.py --memory memory --classes "red panda" quokka axolotl \
        --max-steps 2000 --batch-size 1024 --image photo.jpg

``memory`` is one that keeps images, and is indexed; without arguments the bundled sample is embedded and indexed first.
"""

import io
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

import memory_builder as mb

DEMO = Path(mb.__file__).parent / "demo"


def main(
    memory: str | None = None,
    classes: tuple[str, ...] = ("cat", "umbrella", "bicycle"),
    out: str = "react",
    image: Path | None = None,
    batch_size: int = 16,
    max_steps: int = 10,
) -> None:
    """Write ``out/subset`` and ``out/run``, then print how well each class fits one image."""
    if memory is None:
        memory = f"{out}/memory"
        mb.embed(str(DEMO / "sample"), memory=memory, model=f"local-dir:{DEMO / 'model'}")
        mb.index(memory)
    opened = mb.Memory.open(memory)
    mb.retrieve(opened, classes=classes, templates="imagenet", out=f"{out}/subset")

    loop = mb.LoopConfig(batch_size=batch_size, max_steps=max_steps)
    description = opened.description
    settings = {"model": description.model, "pretrained": description.pretrained, "loop": loop}
    mb.train_react(f"{out}/subset", out=f"{out}/run", **settings)

    encoder = mb.load_react(f"{out}/run")
    shown = image.read_bytes() if image else opened.picture(int(opened.search(classes[0], k=1).ids[0, 0]))
    pixels = np.stack([encoder.preprocess(Image.open(io.BytesIO(shown)).convert("RGB"))])
    prompts = encoder.encode_texts([f"a photo of a {name}." for name in classes])
    for name, score in zip(classes, (encoder.encode_images(pixels) @ prompts.T)[0], strict=True):
        print(f"{score:.3f}  {name}")


if __name__ == "__main__":
    tyro.cli(main)
