"""Where embedding spends its time: the shares of decode, forward and the rest in the wall time of one run.

    uv run python benchmarks/embed_profile.py 'shards/*.tar' --model local-dir:memory_builder/demo/model

The wall time is that of ``embed`` as a library, from the call to its return: finding and planning shards, reading,
decoding, the model, writing, committing, folding; loading the model, once a worker, stands apart. Decode is what the
forward pass has to wait for, reading included: threads decode while the model runs.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from memory_builder.build import embed
from memory_builder.embed import EmbedConfig
from memory_builder.encoder import EncoderConfig, load_encoder
from memory_builder.manifest import Manifest
from memory_builder.runner import LocalRunner
from memory_builder.storage import Store


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What is embedded."""

    shards: tyro.conf.Positional[tuple[str, ...]]
    """As for embed."""
    encoder: tyro.conf.OmitArgPrefixes[EncoderConfig]


def main(config: Profile) -> None:
    """Print seconds and shares."""
    started = time.perf_counter()
    load_encoder(config.encoder)
    loaded_s = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        memory = Path(folder) / "memory"
        report = embed(config.shards, str(memory), encoder=config.encoder, config=EmbedConfig(), runner=LocalRunner())
        commits = Manifest.read(Store(memory)).commits.values()
    wall = report.seconds
    parts = {name: sum(commit.seconds[name] for commit in commits) for name in ("decode", "forward", "write")}
    parts["rest"] = wall - sum(parts.values())
    print(
        f"{report.n_rows:,} rows in {wall:.1f} s: {report.n_rows / wall:.0f} pairs/s; model loaded in {loaded_s:.1f} s"
    )
    for name, seconds in parts.items():
        print(f"{name:<8} {seconds:8.2f} s  {seconds / wall:6.1%}")
    print(f"decode + forward {(parts['decode'] + parts['forward']) / wall:.1%} of the wall time")


if __name__ == "__main__":
    main(tyro.cli(Profile))
