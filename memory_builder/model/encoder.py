"""A frozen open_clip model behind two functions: pictures → unit vectors, texts → unit vectors.

torch and open_clip take seconds to import. They are imported where a model is used, so that other commands start at
once.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from memory_builder.base.log import logger
from memory_builder.base.types import Pixels, Vectors
from memory_builder.errors import EncoderError, UsageError
from memory_builder.model.model_files import LOCAL_DIR, refuse_code, refuse_code_in
from memory_builder.model.open_clip_import import import_open_clip

if TYPE_CHECKING:
    import torch

CONFIG = "open_clip_config.json"
"""Configuration file beside the weights in a ``local-dir:`` folder."""
MAX_READ = 8192
"""Characters of a text that are tokenised: hundreds of times any model's context; more could take hours."""
Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig:
    """An open_clip model, its weights and precision."""

    model: str
    """An open_clip model name, or local-dir:FOLDER with open_clip_config.json and weights."""
    pretrained: str | None = None
    """A pretrained tag or a weights file; not used with local-dir:."""
    precision: Precision = "auto"
    """auto: bf16 autocast on a GPU, fp32 elsewhere."""
    compile: bool = False
    """Compile the model with torch.compile: minutes at the start, faster from then on."""

    def __post_init__(self) -> None:
        # memory.json keeps these, and the memory may be opened from another working directory.
        folder = self.model.removeprefix(LOCAL_DIR)
        if folder != self.model:
            object.__setattr__(self, "model", LOCAL_DIR + os.path.abspath(folder))
        if self.pretrained and os.path.isfile(self.pretrained):
            object.__setattr__(self, "pretrained", os.path.abspath(self.pretrained))

    def resolved_precision(self) -> str:
        if self.precision != "auto":
            return self.precision
        import torch

        return "bf16" if torch.cuda.is_available() else "fp32"


def named_encoder(model: str | None, pretrained: str | None) -> EncoderConfig | None:
    """Return the encoder that --model and --pretrained name; None without --model.

    Raises:
        UsageError: --pretrained is given without --model.
    """
    if pretrained is not None and model is None:
        raise UsageError(f"--pretrained {pretrained} needs --model, the architecture of these weights")
    return EncoderConfig(model=model, pretrained=pretrained) if model else None


class Encoder:
    """A loaded model. ``d`` is the width of its embeddings.

    ``fingerprint`` covers architecture (which names the tokenizer), weights and preprocessing: two encoders with the
    same fingerprint give the same vectors, whatever their files are called. The tokenizer is loaded with the first
    text, after callers have compared the fingerprint.

    Raises:
        EncoderError: the name, tag, folder or weights file is unknown or unusable.
    """

    def __init__(self, config: EncoderConfig) -> None:
        log_loading(config.model)
        import torch

        import_open_clip()
        from memory_builder.model.unpadded_text import trimming

        self.config = config
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model, architecture = _load(config, self.device)
        if self.device.type == "cuda":
            self.model.to(memory_format=torch.channels_last)
        self._resize, self._mean, self._std, preprocess = _preprocessing(self.model, self.device)
        self._bf16 = config.resolved_precision() == "bf16"
        self.fingerprint = _fingerprint(self.model, architecture, preprocess)
        self._encode_image: Callable[[torch.Tensor], torch.Tensor] = self.model.encode_image
        self._encode_text = trimming(self.model) or self.model.encode_text
        if config.compile:
            self._encode_image = torch.compile(self._encode_image)
            self._encode_text = torch.compile(self._encode_text, dynamic=True)
        self._lock = Lock()  # one forward pass at a time: two at once only slow each other
        self.d = self._width()
        self.image_size = min(self.preprocess(Image.new("RGB", (8, 8))).shape[:2])

    @cached_property
    def tokenizer(self) -> Callable[[list[str]], Any]:
        """Texts → i64[n, context].

        Raises:
            EncoderError: the tokenizer cannot be loaded.
        """
        import open_clip

        # open_clip passes the option to transformers' tokenizers; its own takes none.
        is_hugging_face = (model_config(self.config.model).get("text_cfg") or {}).get("hf_tokenizer_name")
        with _encoder_errors(self.config):
            tokenizer: Callable[[list[str]], Any] = open_clip.get_tokenizer(
                self.config.model, **({"trust_remote_code": False} if is_hugging_face else {})
            )
        return tokenizer

    def preprocess(self, image: Image.Image) -> Pixels:
        """RGB picture → u8[h, w, 3], resized and cropped exactly as open_clip does, not yet normalised."""
        return np.array(self._resize(image).convert("RGB"))

    def encode_images(self, pixels: Pixels) -> Vectors:
        """u8[n, h, w, 3] → f16[n, d], unit rows."""
        if not len(pixels):
            return np.zeros((0, self.d), np.float16)
        import torch

        with self._lock, torch.inference_mode(), self._autocast():
            batch = torch.from_numpy(pixels)
            if self.device.type == "cuda":
                batch = batch.pin_memory().to(self.device, non_blocking=True)
            batch = batch.permute(0, 3, 1, 2).float().div_(255)  # f32[n, 3, h, w], channels last in memory
            batch = batch.sub_(self._mean).div_(self._std)
            return _unit_rows(self._encode_image(batch))

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """n texts → f16[n, d], unit rows. Each distinct text goes through the model once."""
        if not texts:
            return np.zeros((0, self.d), np.float16)
        import torch

        distinct = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        tokens = self.tokenizer([text[:MAX_READ] for text in distinct])  # i64[m, context]
        with self._lock, torch.inference_mode(), self._autocast():
            vectors = _unit_rows(self._encode_text(tokens.to(self.device)))
        return vectors[[distinct[text] for text in texts]]

    def _width(self) -> int:
        """Measure d on a text of padding."""
        import torch

        length = int(getattr(self.model, "context_length", 0) or self.model.text.context_length)
        with torch.inference_mode():
            return int(self.model.encode_text(torch.zeros(1, length, dtype=torch.long, device=self.device)).shape[1])

    def _autocast(self) -> AbstractContextManager[Any]:
        import torch

        return torch.autocast(self.device.type, torch.bfloat16) if self._bf16 else nullcontext()


def _unit_rows(features: "torch.Tensor") -> Vectors:
    from torch.nn.functional import normalize

    vectors: Vectors = normalize(features.float(), dim=-1).half().cpu().numpy()
    return vectors


def _load(config: EncoderConfig, device: Any) -> tuple[Any, dict[str, Any]]:
    """Load the model, with a weights file of tensors alone, and its architecture."""
    import open_clip

    folder = config.model.removeprefix(LOCAL_DIR)
    with _encoder_errors(config):
        if folder != config.model:
            refuse_code(folder)
        architecture = model_config(config.model)
        refuse_code_in(architecture, config.model)
        model = open_clip.create_model(
            config.model,
            pretrained=config.pretrained,
            device=device,
            require_pretrained=True,
            pretrained_text=False,
            weights_only=True,
        )
    model.eval().requires_grad_(False)
    return model, architecture


@contextmanager
def _encoder_errors(config: EncoderConfig) -> Iterator[None]:
    """Raise EncoderError, with the model's name, for any exception in this block."""
    name = f"model {config.model!r}" + (f" with pretrained {config.pretrained!r}" if config.pretrained else "")
    try:
        with _no_remote_code():
            yield
    except EncoderError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise EncoderError(
            f"cannot load {name}: {reason}. Name an open_clip model with a pretrained tag "
            "or weights file (python -c 'import open_clip; print(open_clip.list_pretrained())' lists them), "
            "or --model local-dir:FOLDER with open_clip_config.json and open_clip_model.safetensors in it."
        ) from error


@contextmanager
def _no_remote_code() -> Iterator[None]:
    """Make transformers refuse remote code at once, instead of prompting at the terminal."""
    try:
        from transformers import dynamic_module_utils
    except ImportError:
        yield
        return
    timeout_s = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = timeout_s


def model_config(name: str) -> dict[str, Any]:
    """Return a copy of the open_clip configuration of a model's architecture."""
    import open_clip

    if name.startswith(LOCAL_DIR):
        text = (Path(name.removeprefix(LOCAL_DIR)) / CONFIG).read_text()
        config: dict[str, Any] = json.loads(text)["model_cfg"]
        return config
    return dict(open_clip.get_model_config(name) or {})


def _preprocessing(model: Any, device: Any) -> tuple[Callable[[Image.Image], Any], Any, Any, dict[str, Any]]:
    """Split open_clip's evaluation transform: resize and crop as uint8, then normalise on the device."""
    import open_clip
    import torch
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from torchvision.transforms import Compose, Normalize, ToTensor

    settings = open_clip.get_model_preprocess_cfg(model)
    steps = image_transform_v2(PreprocessCfg(**settings), is_train=False).transforms
    cut = next((i for i, step in enumerate(steps) if isinstance(step, ToTensor)), None)
    if cut is None or not isinstance(steps[-1], Normalize):
        raise EncoderError(f"open_clip's preprocessing has an unknown shape: {steps}")
    mean = torch.tensor(steps[-1].mean, device=device).view(3, 1, 1)
    std = torch.tensor(steps[-1].std, device=device).view(3, 1, 1)
    return Compose(steps[:cut]), mean, std, settings


def _fingerprint(model: Any, architecture: dict[str, Any], preprocess: dict[str, Any]) -> str:
    """SHA-256 over architecture, preprocessing and every weight, as hex."""
    import torch

    quick_gelu = any(type(module).__name__ == "QuickGELU" for module in model.modules())
    description = {"model": architecture, "preprocess": preprocess, "quick_gelu": quick_gelu}
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@cache
def log_loading(model: str) -> None:
    """Log that a model is being loaded, once in this process: torch alone takes seconds to import."""
    logger.info(f"loading model {model}")


@lru_cache(maxsize=1)
def load_encoder(config: EncoderConfig) -> Encoder:
    """Load an encoder once for all stages of a process that use the same model."""
    return Encoder(config)
