r"""Refine CLIP embeddings with what they retrieve: train a RECO fusion, then classify an image with and without it.

    uv run python examples/reco_inference.py
    uv run python examples/reco_inference.py --memory memory --train pairs --max-steps 5000 --batch-size 4096 \
        --image photo.jpg --classes "red panda" quokka axolotl

``memory`` is searched for neighbours, ``train`` holds the pairs to learn from (the same memory unless given). A trained
fusion works with any memory of the same CLIP. Without arguments the bundled sample is embedded and indexed first.
"""

from pathlib import Path

import tyro

import memory_builder as mb

DEMO = Path(mb.__file__).parent / "demo"


def main(
    memory: str | None = None,
    train: str | None = None,
    classes: tuple[str, ...] = ("cat", "umbrella", "bicycle"),
    out: str = "reco",
    image: Path | None = None,
    batch_size: int = 64,
    max_steps: int = 10,
) -> None:
    """Write ``out/fusion``, then print each class's cosine with the image, refined by the memory and plain."""
    if memory is None:
        memory = f"{out}/memory"
        mb.embed(str(DEMO / "sample"), memory=memory, model=f"local-dir:{DEMO / 'model'}")
        mb.index(memory)
    loop = mb.LoopConfig(batch_size=batch_size, max_steps=max_steps)
    mb.train_reco(memory, train=train or memory, out=f"{out}/fusion", loop=loop)

    reco, opened = mb.load_reco(f"{out}/fusion"), mb.Memory.open(memory)
    shown = image.read_bytes() if image else opened.picture(int(opened.search(classes[0], k=1).ids[0, 0]))
    prompts = [f"a photo of a {name}." for name in classes]
    refined = reco.encode_image([shown], opened) @ reco.encode_text(prompts, opened).T
    plain = reco.encode_image([shown]) @ reco.encode_text(prompts).T
    for name, with_memory, without in zip(classes, refined[0], plain[0], strict=True):
        print(f"{name:20} refined {with_memory:.3f}   plain {without:.3f}")


if __name__ == "__main__":
    tyro.cli(main)
