"""Run img2dataset over pictures on loopback, in its three formats: ``python write_img2dataset.py OUT``.

Every fifth or so is no picture or is not there, and every seventh has no caption.
"""

import csv
import functools
import http.server
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
from img2dataset import download
from PIL import Image

N = 40
FORMATS = ("webdataset", "files", "parquet")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


def main(out: Path) -> None:
    site = out / "site"
    site.mkdir(parents=True)
    for i in range(N):
        pixels = np.random.default_rng(i).integers(0, 255, (40 + 5 * i, 200, 3), np.uint8)
        if i % 11 == 5:
            (site / f"{i}.jpg").write_bytes(b"<html>no picture</html>")
        elif i % 13 != 7:
            Image.fromarray(pixels).save(site / f"{i}.jpg", "JPEG")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with (out / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["url", "caption", "similarity"])
        for i in range(N):
            caption = f'picture "{i}", quoted' if i % 7 else ""
            writer.writerow([f"http://127.0.0.1:{server.server_port}/{i}.jpg", caption, i / N])
    for kind in FORMATS:
        download(
            url_list=str(out / "list.csv"),
            output_folder=str(out / kind),
            output_format=kind,
            input_format="csv",
            url_col="url",
            caption_col="caption",
            save_additional_columns=["similarity"],
            image_size=64,
            encode_format="png",
            encode_quality=6,
            number_sample_per_shard=15,
            processes_count=1,
            thread_count=4,
            retries=0,
            compute_hash="sha256",
        )
    server.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
