"""What Prometheus finds at a node of the cluster after an embed."""

import re
import time
import urllib.request
from pathlib import Path

import pytest
import ray

import memory_builder as mb
from cluster.runner import RayRunner
from memory_builder.catalog.manifest import Manifest
from memory_builder.embedding.config import EmbedConfig
from memory_builder.model.encoder import EncoderConfig
from memory_builder.storage.store import Store

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
LINE = re.compile(r"^ray_memory_builder_(\w+?)(?:_total)?\{(.*)\} ([0-9.e+-]+)$")


def scrape() -> dict[tuple[str, str], float]:
    """(counter, its tag) → value; nothing where no agent answers yet."""
    (node,) = ray.nodes()
    found: dict[tuple[str, str], float] = {}
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        for line in answer.read().decode().splitlines():
            if match := LINE.match(line):
                name, tags, value = match.groups()
                tag = re.search(r'(?:reason|stage|state)="([^"]*)"', tags)
                key = (name, tag[1] if tag else "")
                found[key] = found.get(key, 0.0) + float(value)
    return found


def settled(enough) -> dict[tuple[str, str], float]:
    """What is found once it is enough: a process reports every ten seconds."""
    deadline = time.monotonic() + 60
    while not enough(found := scrape()):
        assert time.monotonic() < deadline, found
        time.sleep(0.5)
    return found


def test_an_embed_is_counted(sample, model, tmp_path):
    before = scrape()
    damaged = tmp_path / "damaged.tar.gz"
    damaged.write_bytes(Path(sample[0]).read_bytes()[:100])
    report = mb.embed(
        [sample[0], str(damaged)],
        str(tmp_path / "memory"),
        encoder=EncoderConfig(model=model),
        config=EmbedConfig(max_pixels=64 * 64 - 1),  # of which some pictures have more
        runner=RayRunner(cpus_per_worker=1),
    )
    assert len(report.failed) == 1
    (commit,) = Manifest.read(Store(tmp_path / "memory")).commits.values()
    assert commit.reasons

    def n(found: dict[tuple[str, str], float], name: str, tag: str = "") -> float:
        return found.get((name, tag), 0.0) - before.get((name, tag), 0.0)

    found = settled(lambda found: n(found, "shards", "done") >= 1 and n(found, "shards", "failed") >= 1)
    assert n(found, "pairs") == commit.n_read
    assert n(found, "rows") == commit.n_written
    assert n(found, "bytes") == Path(sample[0]).stat().st_size
    assert {reason: n(found, "rejects", reason) for reason in commit.reasons} == commit.reasons
    for stage in ("decode", "forward", "write"):
        assert n(found, "seconds", stage) == pytest.approx(commit.seconds[stage], rel=1e-3)
