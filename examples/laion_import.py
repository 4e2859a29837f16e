r"""Import published CLIP embeddings, index them, and search the captions and URLs that came with them.

    uv run python examples/laion_import.py
    uv run python examples/laion_import.py --root laion400m --model ViT-B-32-quickgelu --pretrained openai \
        --max-memory 64G

``root`` has the layout that clip-retrieval writes and LAION publishes: ``img_emb/*.npy``, ``text_emb/*.npy`` and
``metadata/*.parquet``. Without arguments the bundled sample is embedded first, into that layout.
"""

from pathlib import Path

import tyro

import memory_builder as mb

DEMO = Path(mb.__file__).parent / "demo"


def main(
    root: str | None = None,
    memory: str = "laion-memory",
    model: str = f"local-dir:{DEMO / 'model'}",
    pretrained: str | None = None,
    max_memory: str = "16G",
    text: str = "umbrella",
    k: int = 5,
) -> None:
    """Import, index within a budget of RAM, search."""
    if root is None:
        root = f"{memory}-published"  # a memory is such a folder
        mb.embed(str(DEMO / "sample"), memory=root, model=model, pretrained=pretrained)
    mb.import_embeddings(root, memory=memory, model=model, pretrained=pretrained)
    mb.index(memory, max_memory=max_memory, target_recall=0.95)

    hits = mb.Memory.open(memory).search(text, k=k)
    print(hits.to_pandas(["caption", "url", "similarity"]).to_string(index=False))


if __name__ == "__main__":
    tyro.cli(main)
