r"""Embed and index on a Ray cluster, then search with the index spread over actors.

    uv run python examples/ray_cluster.py                        # a cluster of this machine alone
    uv run python examples/ray_cluster.py --address auto --sources 's3://bucket/shards/*.tar' \
        --memory s3://bucket/memory --model ViT-B-32 --pretrained laion2b_s34b_b79k

Every stage writes the same bytes as on one machine. The memory must be on storage that all nodes reach.
"""

from pathlib import Path

import tyro

import memory_builder as mb

DEMO = Path(mb.__file__).parent / "demo"


def main(
    sources: str = str(DEMO / "sample"),
    memory: str = "ray-memory",
    model: str = f"local-dir:{DEMO / 'model'}",
    pretrained: str | None = None,
    address: str | None = None,
    text: str = "umbrella",
    k: int = 5,
) -> None:
    """Do all three stages on the cluster at ``address``; without one, on a cluster started here."""
    runner = mb.RayRunner(address)
    mb.embed(sources, memory=memory, model=model, pretrained=pretrained, runner=runner)
    mb.index(memory, target_recall=0.95, runner=runner)

    hits = mb.Memory.open(memory, address=address or "auto").search(text, k=k)
    print(hits.to_pandas(["key", "caption", "similarity"]).to_string(index=False))


if __name__ == "__main__":
    tyro.cli(main)
