r"""Make a folder of photos searchable by text, without captions, and print the files that match.

    uv run python examples/own_photos.py
    uv run python examples/own_photos.py --photos ~/Pictures --text "a dog on a beach" \
        --model ViT-B-32 --pretrained laion2b_s34b_b79k

Run again after adding photos: only new or changed ones are embedded, and ``append`` adds them to the index. Without
arguments it uses the bundled sample of icons.
"""

from pathlib import Path

import tyro

import memory_builder as mb

DEMO = Path(mb.__file__).parent / "demo"


def main(
    photos: str = str(DEMO / "sample"),
    memory: str = "photos-memory",
    model: str = f"local-dir:{DEMO / 'model'}",
    pretrained: str | None = None,
    text: str = "umbrella",
    k: int = 5,
) -> None:
    """Embed images with or without a caption, index their embeddings, and search them."""
    images_only = mb.EmbedConfig(require="image")
    mb.embed(photos, memory=memory, model=model, pretrained=pretrained, config=images_only)
    if mb.Memory.open(memory).snapshot.indexes:
        mb.Memory.open(memory).append()
    else:
        mb.index(memory)

    opened = mb.Memory.open(memory)
    hits = opened.search(text, k=k)
    for scores, ids in zip(*hits, strict=True):
        for score, row_id in zip(scores, ids, strict=True):
            member = opened.metadata([row_id], ["member"])["member"][0]
            print(f"{score:.3f}  {opened.source(int(row_id))}  {member}")


if __name__ == "__main__":
    tyro.cli(main)
