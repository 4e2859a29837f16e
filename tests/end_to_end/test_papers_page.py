"""The commands of docs/papers.md, in order, on a tiny stand-in of every format they name."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.bundled import ROOT, SAMPLE, small_shard
from helpers.evaluation_sets import classification_set, encoded, picture, retrieval_set
from memory_builder.model.encoder import EncoderConfig, load_encoder
from memory_builder.model.images import decode_image
from memory_builder.readers.read import Pair, read_pairs
from trainer.evaluate.sets.towers import load_towers

PAGE = (ROOT / "docs" / "papers.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S) for line in block.splitlines()]
CLIP = "--model ViT-B-32-quickgelu --pretrained openai"
SETS = ("cars", "cub", "flowers", "imagenet1k", "places365")
SHORT = ("--batch-size", "16", "--max-steps", "2")


@pytest.fixture(scope="module")
def home(tmp_path_factory, model) -> Path:
    home = tmp_path_factory.mktemp("papers")
    (home / "cc12m").mkdir()
    small_shard(SAMPLE / "00000.tar.gz", home / "cc12m" / "00000.tar", n_pairs=60)
    small_shard(SAMPLE / "00001.tar.gz", home / "cc12m" / "00001.tar", n_pairs=60)
    _laion(home / "laion400m", model)
    for i, name in enumerate(SETS):
        classification_set(home / "wds" / name, splits={"test": 1}, first_seed=10 * i)
    retrieval_set(home / "wds" / "flickr30k")
    _oven(home)
    (home / "examples").symlink_to(ROOT / "examples")
    return home


def _laion(folder: Path, model: str) -> None:
    """Two files of vectors a side, as clip-retrieval's inference writes them."""
    towers = load_towers(EncoderConfig(model=model))
    texts = load_encoder(EncoderConfig(model=model))
    for side in ("img_emb", "text_emb", "metadata"):
        (folder / side).mkdir(parents=True)
    for i, packed in enumerate(("00002.tar.gz", "00003.tar.gz")):
        tar = folder.parent / f"laion-{i}.tar"
        small_shard(SAMPLE / packed, tar, n_pairs=80)
        pairs = [pair for pair in read_pairs(str(tar)) if isinstance(pair, Pair)]
        captions = [pair.caption for pair in pairs]
        assert all(decode_image(pair.image) for pair in pairs)
        images = towers.encode_images(np.stack([towers.pixels(pair.image) for pair in pairs]))
        np.save(folder / "img_emb" / f"img_emb_{i}.npy", images.astype(np.float16))
        np.save(folder / "text_emb" / f"text_emb_{i}.npy", texts.encode_texts(captions).astype(np.float16))
        table = pa.table({"image_path": [pair.key for pair in pairs], "caption": captions})
        pq.write_table(table, folder / "metadata" / f"metadata_{i}.parquet")


def _oven(home: Path) -> None:
    rows = []
    for i in range(12):
        image_id = f"oven_{i:08d}"
        (home / "oven_images" / "00").mkdir(parents=True, exist_ok=True)
        (home / "oven_images" / "00" / f"{image_id}.jpg").write_bytes(encoded(picture(i, 99), "JPEG"))
        rows.append({
            "data_id": f"oven_entity_val_{i:08d}", "image_id": image_id, "question": "what is this?",
            "entity_id": f"Q{i}", "entity_text": f"thing {i}", "data_split": ("val_seen", "val_unseen")[i % 2],
        })  # fmt: skip
    (home / "oven_entity_val.jsonl").write_text("\n".join(map(json.dumps, rows)))
    other = {"wikidata_id": "Q99", "wikipedia_title": "another thing"}
    (home / "Wiki6M_ver_1_0.jsonl").write_text(json.dumps(other))


def test_the_commands_run_in_order_on_stand_ins(home, command, model, monkeypatch):
    monkeypatch.chdir(home)
    for line in COMMANDS:
        words = shlex.split(line.replace(CLIP, f"--model {model}"))
        if words[0] == "uv":
            done = subprocess.run([sys.executable, *words[3:]], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            continue
        ran = command(*words[1:], *(SHORT if words[1] == "train" else ()))
        assert ran.code == 0, (line, ran.err)
    results = [json.loads(path.read_text()) for path in (home / "reco" / "eval").glob("*.json")]
    asked = {(result["dataset"]["name"], result["method"]) for result in results}
    assert asked >= {(name, "reco-both") for name in (*SETS, "flickr30k", "oven")}
    oven = next(r for r in results if r["dataset"]["name"] == "oven" and r["method"] == "reco-both")
    assert set(oven["figures"]["tiers"]) == {"seen", "unseen"}
    assert len(oven["dataset"]["classes"]) == 13
