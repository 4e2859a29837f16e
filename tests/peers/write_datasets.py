"""Write the same pairs with webdataset and datasets, in every way they have: ``python write_datasets.py OUT``."""

import hashlib
import io
import json
import sys
from pathlib import Path

import datasets
import numpy as np
import webdataset
from PIL import Image

N = 30


def png(i: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(i).integers(0, 255, (32, 32, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def main(out: Path) -> None:
    out.mkdir(parents=True)
    pictures = [png(i) for i in range(N)]
    truth = {f"caption {i}": hashlib.sha256(picture).hexdigest() for i, picture in enumerate(pictures)}
    (out / "truth.json").write_text(json.dumps(truth))
    for name, options in (("plain.tar", {}), ("z.tar.gz", {}), ("packed.tar", {"compress": True}), ("c.tgz", {})):
        with webdataset.TarWriter(str(out / name), **options) as writer:
            for i, picture in enumerate(pictures):
                writer.write({"__key__": f"s/{i:03d}", "png": picture, "txt": f"caption {i}", "json": {"n": i}})
    (out / "shards").mkdir()
    with webdataset.ShardWriter(str(out / "shards" / "%05d.tar"), maxcount=7) as shards:
        for i, picture in enumerate(pictures):
            shards.write({"__key__": f"{i:03d}", "png": picture, "json": {"caption": f"caption {i}"}})
    columns = {
        "image": [{"bytes": picture, "path": f"{i}.png"} for i, picture in enumerate(pictures)],
        "text": [f"caption {i}" for i in range(N)],
    }
    table = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    table.to_parquet(str(out / "table.parquet"))
    (out / "hub" / "data").mkdir(parents=True)
    for shard in range(3):
        table.shard(3, shard).to_parquet(str(out / "hub" / "data" / f"train-{shard:05d}-of-00003.parquet"))
    for split, rows in (("train", range(20)), ("test", range(20, N))):
        folder = out / "imagefolder" / split
        folder.mkdir(parents=True)
        for i in rows:
            (folder / f"{i}.png").write_bytes(pictures[i])
        lines = [json.dumps({"file_name": f"{i}.png", "text": f"caption {i}"}) for i in rows]
        (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    read = datasets.load_dataset("imagefolder", data_dir=str(out / "imagefolder"))
    assert [len(read[split]) for split in ("train", "test")] == [20, 10]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
