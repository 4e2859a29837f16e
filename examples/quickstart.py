"""Embed image-text pairs, index them, and search them by text and by image.

    uv run python examples/quickstart.py
    uv run python examples/quickstart.py --sources 'shards/*.tar' --model ViT-B-32 --pretrained laion2b_s34b_b79k

Without arguments it uses the bundled sample (2,385 icons with their names) and the small CLIP that comes with it.
"""

from pathlib import Path

import tyro

import memory_builder as mb

DEMO = Path(mb.__file__).parent / "demo"


def main(
    sources: str = str(DEMO / "sample"),
    memory: str = "quickstart-memory",
    model: str = f"local-dir:{DEMO / 'model'}",
    pretrained: str | None = None,
    text: str = "umbrella",
    k: int = 5,
) -> None:
    """Build the memory, or continue where an earlier run stopped, and search it twice."""
    mb.embed(sources, memory=memory, model=model, pretrained=pretrained)
    mb.index(memory, target_recall=0.95)

    opened = mb.Memory.open(memory)
    hits = opened.search(text, k=k)
    print(f"{len(opened):,} rows; nearest images to the text {text!r}:")
    print(hits.to_pandas(["key", "caption", "similarity"]).to_string(index=False))

    _, ids = hits
    image = opened.picture(int(ids[0, 0]))
    print("nearest captions to the first of these images:")
    hits = opened.search(image=image, modality="text", k=k)
    print(hits.to_pandas(["caption", "similarity"]).to_string(index=False))


if __name__ == "__main__":
    tyro.cli(main)
