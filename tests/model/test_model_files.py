"""Models that a file names: none is opened that nobody here named, and none runs code of its own."""

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from memory_builder.base.runner import LocalRunner
from memory_builder.catalog.trusted_sources import remember_model, trusted_encoder
from memory_builder.embedding.config import EmbedConfig
from memory_builder.embedding.driver import embed
from memory_builder.errors import EncoderError
from memory_builder.indexing.config import IndexConfig
from memory_builder.indexing.driver import index
from memory_builder.memory import Memory
from memory_builder.model.encoder import Encoder, EncoderConfig


@pytest.fixture
def copied(tmp_path: Path, model_dir: Path) -> Path:
    return Path(shutil.copytree(model_dir, tmp_path / "model"))


def change(path: Path, **values: Any) -> None:
    record = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(record | values))


@pytest.mark.parametrize(
    ("file", "entry"),
    [
        ("open_clip_config.json", {"text_cfg": {"tokenizer_kwargs": {"trust_remote_code": True}}}),
        ("open_clip_config.json", {"text_cfg": {"tokenizer_kwargs": {"more": [{"deeper": {"trust_remote_code": 1}}]}}}),
        ("open_clip_config.json", {"text_cfg": {"hf_model_config": {"trust_remote_code": "yes"}}}),
        ("open_clip_config.json", {"trust_remote_code": True}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}),
        ("config.json", {"auto_map": {"AutoModel": "evil.Evil"}}),
        ("config.json", {"custom_pipelines": {"x": {"impl": "evil.Evil"}}}),
        ("text/config.json", {"auto_map": {"AutoConfig": "evil.Evil"}}),
    ],
)
def test_a_model_that_asks_for_code_to_be_run_is_refused_wherever_it_does(
    copied: Path, file: str, entry: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (copied / file).parent.mkdir(exist_ok=True)
    if file == "open_clip_config.json":
        config = json.loads((copied / file).read_text())
        text = config["model_cfg"]["text_cfg"] | entry.pop("text_cfg", {})
        entry = {"model_cfg": config["model_cfg"] | {"text_cfg": text} | entry}
    change(copied / file, **entry)
    monkeypatch.setattr("open_clip.create_model", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(EncoderError, match=r"requests remote code \(\w+\), which is never run"):
        Encoder(EncoderConfig(model=f"local-dir:{copied}"))


def test_an_entry_that_asks_for_nothing_does_no_harm(copied: Path, model_dir: Path) -> None:
    change(copied / "tokenizer_config.json", trust_remote_code=False, auto_map=None)
    encoder, same = (Encoder(EncoderConfig(model=f"local-dir:{folder}")) for folder in (copied, model_dir))
    assert encoder.fingerprint == same.fingerprint


class Evil:
    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)

    path = ""


@pytest.mark.parametrize("name", ["open_clip_pytorch_model.bin", "model.pth", "tag.pt"])
def test_weights_are_tensors_and_nothing_else(copied: Path, tmp_path: Path, name: str) -> None:
    Evil.path = str(tmp_path / "ran")
    (copied / "open_clip_model.safetensors").unlink()
    for dump in (
        lambda path: torch.save({"state_dict": Evil()}, path),
        lambda path: path.write_bytes(pickle.dumps(Evil())),
    ):
        dump(copied / name)
        config = EncoderConfig(model=f"local-dir:{copied}")
        if name == "tag.pt":
            config = EncoderConfig(model="ViT-B-32", pretrained=str(copied / name))
        with pytest.raises(EncoderError, match="cannot load"):
            Encoder(config)
        assert not (tmp_path / "ran").exists()


def test_safetensors_come_before_pickles(copied: Path, encoder: Encoder) -> None:
    (copied / "open_clip_pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    assert Encoder(EncoderConfig(model=f"local-dir:{copied}")).fingerprint == encoder.fingerprint


@pytest.fixture
def memory(tmp_path: Path, copied: Path) -> Path:
    """A memory that was built here, with a model in a folder."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a cat")
    root, runner = tmp_path / "memory", LocalRunner()
    config = EmbedConfig(require="text")
    embed(
        [str(tmp_path / "texts")],
        str(root),
        encoder=EncoderConfig(model=f"local-dir:{copied}"),
        config=config,
        runner=runner,
    )
    index(str(root), keys=["text"], config=IndexConfig(), runner=runner)
    return root


@pytest.mark.parametrize("model", ["local-dir:{memory}/model", "hf-hub:stranger/model", "ViT-B-32", "{memory}/model"])
def test_a_model_that_a_memory_alone_names_is_not_opened(
    memory: Path, copied: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever wrote memory.json named a model in the memory, or anywhere else."""
    shutil.copytree(copied, memory / "model")
    name = model.format(memory=memory)
    change(memory / "memory.json", model=name, pretrained=str(memory / "w.pt") if name == "ViT-B-32" else None)
    opened: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr("memory_builder.model.encoder._load", lambda *args: opened.append(args))
        with pytest.raises(EncoderError, match=r"was never named on this machine.*--model"):
            Memory.open(memory).search(text="a cat", keys="text")
    assert opened == []
    named = Memory.open(memory, encoder=EncoderConfig(model=f"local-dir:{copied}"))
    assert named.search(text="a cat", keys="text", k=1).ids[0, 0] == 0


def test_a_memory_that_was_built_here_goes_on_and_so_does_its_copy(memory: Path, tmp_path: Path) -> None:
    assert Memory.open(memory).search(text="a cat", keys="text", k=1).ids[0, 0] == 0
    shutil.move(memory, tmp_path / "moved")
    assert Memory.open(tmp_path / "moved").search(text="a cat", keys="text", k=1).ids[0, 0] == 0


def test_other_weights_are_told_before_any_tokenizer_is_made(
    memory: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(memory / "memory.json", fingerprint="0" * 64)
    monkeypatch.setattr("open_clip.get_tokenizer", lambda *_, **__: pytest.fail("a tokenizer was made"))
    with pytest.raises(EncoderError, match="fingerprint"):
        Memory.open(memory, encoder=EncoderConfig(model=f"local-dir:{copied}", precision="fp32")).search(text="a")


def test_what_open_clip_or_this_package_brings_needs_no_naming(model_dir: Path, tmp_path: Path) -> None:
    for config in (
        EncoderConfig(model="ViT-B-32", pretrained="laion2b_s34b_b79k"),
        EncoderConfig(model="xlm-roberta-base-ViT-B-32", pretrained="laion5b_s13b_b90k"),
        EncoderConfig(model=f"local-dir:{model_dir}"),
        EncoderConfig(model=""),
    ):
        assert trusted_encoder(config, "x") is config
    for config in (
        EncoderConfig(model="ViT-B-32", pretrained="../weights.pt"),
        EncoderConfig(model="hf-hub:a/b"),
        EncoderConfig(model="org/model"),
        EncoderConfig(model=f"local-dir:{tmp_path}"),
        EncoderConfig(model="local-dir:model"),
    ):
        with pytest.raises(EncoderError, match="name it yourself"):
            trusted_encoder(config, "x")
        remember_model(config)
        assert trusted_encoder(config, "x") is config
        with pytest.raises(EncoderError, match="name it yourself"):
            trusted_encoder(EncoderConfig(model=config.model, pretrained="/other/weights"), "x")
