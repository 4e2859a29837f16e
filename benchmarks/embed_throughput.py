"""Pairs a second from tars of JPEGs to a memory: ours, clip-retrieval's, and the floor both stand on.

    uv venv /tmp/peer --python 3.11
    uv pip install --python /tmp/peer/bin/python 'clip-retrieval==2.45.0' 'setuptools<81'
    uv run python benchmarks/embed_throughput.py --peer /tmp/peer/bin/python --architecture ViT-B-32

The floor is decode and transform alone, in as many threads as we use, plus the forward passes alone on batches that lie
ready in memory, at the same precision. Ours and the peer's are whole commands, of which the time of the same command on
two shards of one pair is taken off: start, imports, model. Pictures are JPEGs of 256 to 512 pixels, made from noise and
the bundled icons; weights are random unless given, which changes no speed.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image

from memory_builder.base.runner import available_threads
from memory_builder.model.encoder import Encoder, EncoderConfig, load_encoder
from memory_builder.model.images import decode_image
from memory_builder.readers.read import Pair, read_pairs

SMALL = Path(__file__).parents[1] / "memory_builder" / "demo" / "model"
SAMPLE = SMALL.parent / "sample"
CLIP_RETRIEVAL = """
import sys, open_clip
open_clip.add_model_config(sys.argv.pop(1))
from clip_retrieval.cli import main
main()
"""


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """What is embedded, with what."""

    work: Path = Path("/tmp/embed_throughput")
    """Folder for shards, weights and memories."""
    architecture: str = "small"
    """small: the bundled model. Else an open_clip model name, with random weights unless --weights names some."""
    weights: Path | None = None
    n_shards: int = 4
    n_pairs: int = 500
    """A shard."""
    peer: Path | None = None
    """Python of an environment with clip-retrieval; without it only we and the floor are measured."""
    precision: str = "fp32"
    """For us and the floor; clip-retrieval has fp32 on a CPU and half precision on a GPU."""
    repeats: int = 1
    """Whole rounds; machines are noisy."""
    jpeg_draft: bool = False
    """Also measure ours with --jpeg-draft, and how far its vectors move."""
    peak: bool = False
    """Also run ours on ten times the shards, and compare peak memory."""


def make_shards(folder: Path, n_shards: int, n_pairs: int) -> None:
    """Tars of pictures with the detail of photographs and captions that differ in length; made once."""
    done = folder / "done"
    if done.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    icons = [decode_image(pair.image) for pair in _pairs(sorted(SAMPLE.glob("*.tar.gz"))[:1]) if pair.image]
    captions = [pair.caption or "" for pair in _pairs(sorted(SAMPLE.glob("*.tar.gz"))[:1])]
    for shard in range(n_shards):
        random = np.random.default_rng(shard)
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for i in range(n_pairs):
                key = f"{shard:05d}{i:04d}"
                words = " ".join(random.choice(captions, random.integers(1, 6)))
                for suffix, data in (("jpg", _photo(random, icons[i % len(icons)])), ("txt", words.encode())):
                    info = tarfile.TarInfo(f"{key}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    done.touch()


def _pairs(shards: list[Path]) -> list[Pair]:
    return [item for shard in shards for item in read_pairs(str(shard)) if isinstance(item, Pair)]


def _photo(random: np.random.Generator, icon: Image.Image) -> bytes:
    width, height = (int(side) for side in random.integers(256, 513, 2))
    coarse = random.integers(0, 256, (8, 8, 3), np.uint8)
    picture = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.int16)
    picture = picture + random.normal(0, 6, picture.shape)
    image = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
    image.paste(icon.resize((width // 2, height // 2)), (width // 4, height // 4))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def encoder_config(config: Throughput) -> EncoderConfig:
    """The model asked for; random weights are made once."""
    if config.architecture == "small":
        return EncoderConfig(model=f"local-dir:{SMALL}", precision=config.precision)  # type: ignore[arg-type]
    weights = config.weights or config.work / f"{config.architecture}.safetensors"
    if not weights.exists():
        import open_clip
        from safetensors.torch import save_file

        model = open_clip.create_model(config.architecture)
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, weights)
    return EncoderConfig(model=config.architecture, pretrained=str(weights), precision=config.precision)  # type: ignore[arg-type]


def floor(encoder: Encoder, shards: list[Path], threads: int, batch: int = 256) -> tuple[float, float]:
    """(seconds of decode and transform alone, seconds of forward alone)."""
    pairs = _pairs(shards)
    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        pixels = list(pool.map(lambda pair: encoder.preprocess(decode_image(pair.image)), pairs))
    decoded = time.perf_counter()
    ready = [np.stack(pixels[i : i + batch]) for i in range(0, len(pairs), batch)]
    captions = [[pair.caption or "" for pair in pairs[i : i + batch]] for i in range(0, len(pairs), batch)]
    stacked = time.perf_counter()
    for images, texts in zip(ready, captions, strict=True):
        encoder.encode_images(images)
        encoder.encode_texts(texts)
    return decoded - started, time.perf_counter() - stacked


def timed(command: list[str]) -> tuple[float, int]:
    """(seconds, peak bytes) of a command that must succeed."""
    with tempfile.TemporaryFile() as said:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        if status:
            said.seek(0)
            raise SystemExit(f"{command} failed:\n{said.read()[-4000:].decode(errors='replace')}")
    return seconds, usage.ru_maxrss * 1024


def captions(encoder: Encoder, shards: list[Path]) -> tuple[float, float]:
    """Captions a second at their own length, and padded to the context length, each distinct one once."""
    texts = list(dict.fromkeys(pair.caption for pair in _pairs(shards) if pair.caption))
    rates = []
    for encode in (encoder._encode_text, encoder.model.encode_text):
        started = time.perf_counter()
        with torch.inference_mode(), encoder._autocast():
            for i in range(0, len(texts), 256):
                encode(encoder._tokenizer(texts[i : i + 256]).to(encoder.device))
        rates.append(len(texts) / (time.perf_counter() - started))
    return rates[0], rates[1]


def ours(encoder: EncoderConfig, shards: str, memory: Path, *more: str) -> tuple[float, int]:
    """Our whole command."""
    shutil.rmtree(memory, ignore_errors=True)
    model = ["--model", encoder.model, *(["--pretrained", encoder.pretrained] if encoder.pretrained else [])]
    command = [sys.executable, "-m", "memory_builder.cli", "embed", shards, "--memory", str(memory), *model]
    return timed([*command, "--precision", encoder.precision, *more])


def peers(config: Throughput, encoder: EncoderConfig, shards: str, out: Path, n_pairs: int) -> float:
    """clip-retrieval's whole command."""
    shutil.rmtree(out, ignore_errors=True)
    configs = config.work / "model_configs"
    configs.mkdir(exist_ok=True)
    if config.architecture == "small":
        name, weights = "icon-clip", SMALL / "open_clip_model.safetensors"
        model = json.loads((SMALL / "open_clip_config.json").read_text())["model_cfg"]
        (configs / "icon-clip.json").write_text(json.dumps(model))
    else:
        name, weights = config.architecture, Path(encoder.pretrained or "")
    arguments = {
        "input_dataset": shards,
        "output_folder": str(out),
        "input_format": "webdataset",
        "clip_model": f"open_clip:{name}/{weights}",
        "enable_metadata": "False",
        "num_prepro_workers": str(os.cpu_count()),
        "batch_size": "256",
        "wds_number_file_per_input_file": str(n_pairs),
        "use_jit": "False",
    }
    flags = [flag for name, value in arguments.items() for flag in (f"--{name}", value)]
    seconds, _ = timed([str(config.peer), "-c", CLIP_RETRIEVAL, str(configs), "inference", *flags])
    rows = sum(len(np.load(file, mmap_mode="r")) for file in (out / "img_emb").glob("*.npy"))
    print(f"  clip-retrieval wrote {rows} rows", file=sys.stderr)
    return seconds


def braces(folder: Path, n: int) -> str:
    """The first n shards of a folder."""
    return f"{folder}/{{00000..{n - 1:05d}}}.tar"


def measure(config: Throughput) -> None:
    """One round; prints rates and ratios."""
    shards, tiny = config.work / f"shards-{config.n_pairs}", config.work / "tiny"
    make_shards(shards, config.n_shards * (10 if config.peak else 1), config.n_pairs)
    make_shards(tiny, 2, 1)  # clip-retrieval wants a shard for each of its readers
    encoder = encoder_config(config)
    n = config.n_shards * config.n_pairs
    named, memory, threads = braces(shards, config.n_shards), config.work / "memory", available_threads()
    start_s, _ = ours(encoder, braces(tiny, 2), memory)
    whole_s, peak_bytes = ours(encoder, named, memory)
    decode_s, forward_s = floor(
        load_encoder(encoder), [shards / f"{i:05d}.tar" for i in range(config.n_shards)], threads
    )
    rate = n / (whole_s - start_s)
    limit = n / (decode_s + forward_s)
    print(f"{config.architecture} {config.precision}, {n} pairs, {threads} threads")
    print(f"  floor  {limit:7.0f} pairs/s (decode {n / decode_s:.0f}, forward {n / forward_s:.0f})")
    print(f"  ours   {rate:7.0f} pairs/s = {rate / limit:.2f} of the floor; peak memory {peak_bytes / 1e9:.2f} GB")
    short, padded = captions(load_encoder(encoder), [shards / "00000.tar"])
    print(f"  captions alone: {short:.0f} a second, padded {padded:.0f}: {short / padded:.2f} times")
    if config.peer:
        peer_start_s = peers(config, encoder, braces(tiny, 2), config.work / "peer", 1)
        peer_s = peers(config, encoder, named, config.work / "peer", config.n_pairs)
        peer_rate = n / (peer_s - peer_start_s)
        print(f"  clip-retrieval {peer_rate:.0f} pairs/s; ours / clip-retrieval = {rate / peer_rate:.2f}")
    if config.jpeg_draft:
        plain = np.load(memory / "img_emb" / "img_emb_00000.npy").astype(np.float32)
        draft_s, _ = ours(encoder, named, memory, "--jpeg-draft")
        cosine = (plain * np.load(memory / "img_emb" / "img_emb_00000.npy").astype(np.float32)).sum(1)
        draft_rate = n / (draft_s - start_s)
        print(f"  --jpeg-draft {draft_rate:.0f} pairs/s; cosine mean {cosine.mean():.4f}, least {cosine.min():.4f}")
    if config.peak:
        _, ten_bytes = ours(encoder, braces(shards, 10 * config.n_shards), memory)
        print(
            f"  peak memory {peak_bytes / 1e9:.2f} GB for {config.n_shards} shards, {ten_bytes / 1e9:.2f} for ten times"
        )


if __name__ == "__main__":
    asked = tyro.cli(Throughput)
    for _ in range(asked.repeats):
        measure(asked)
