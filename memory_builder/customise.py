"""Customise a frozen CLIP with a memory: REACT and RECO, trained and loaded."""

from functools import partial
from typing import TYPE_CHECKING

from memory_builder.commands.options import start_runner
from memory_builder.errors import UsageError
from memory_builder.memory import Memory
from memory_builder.model.encoder import Encoder, EncoderConfig, named_encoder
from trainer.loop.config import LoopConfig, OptimizerConfig, TrainRunnerConfig
from trainer.react.config import DataConfig, GatedConfig, ReactConfig
from trainer.reco.config import FusionConfig, LookupConfig, NeighbourConfig, published_loop

if TYPE_CHECKING:
    from trainer.reco.model import RecoModel

__all__ = [
    "DataConfig",
    "FusionConfig",
    "GatedConfig",
    "LookupConfig",
    "LoopConfig",
    "NeighbourConfig",
    "OptimizerConfig",
    "ReactConfig",
    "load_react",
    "load_reco",
    "train_react",
    "train_reco",
]


def train_react(
    subset: str,
    *,
    out: str,
    model: str | None = None,
    pretrained: str | None = None,
    encoder: EncoderConfig | None = None,
    react: ReactConfig | None = None,
    data: DataConfig | None = None,
    loop: LoopConfig | None = None,
    on: TrainRunnerConfig | None = None,
) -> str:
    """Train gated blocks in a frozen CLIP on a retrieved subset (REACT, stage 2) → ``out``, for ``load_react``.

    Args:
        subset: folder that ``retrieve`` wrote, or any folder of webdataset tars.
        out: folder of the run; an unfinished run there is resumed.
        model, pretrained: the open_clip model; ``encoder`` with its defaults.
        encoder: the complete encoder config. Without all three, the model that the subset was retrieved with.
        react: the trained parameters.
        data: how pairs become batches.
        loop: epochs, global batch, optimizer, checkpoints.
        on: this process, or workers of a Ray cluster.

    Raises:
        UsageError: no model is given and the subset names none, or settings do not fit together.
        ConfigMismatchError: ``out`` holds a run of other settings.
        LossError: the loss is not finite.
    """
    from trainer.loop.launch import run_job
    from trainer.react.job import ReactJob
    from trainer.react.subset import described_encoder

    encoder = encoder or named_encoder(model, pretrained) or described_encoder(subset)
    if encoder is None:
        raise UsageError(f"{subset} does not name the model that it was retrieved with: pass model=…")
    job = ReactJob(
        subset=subset,
        out=out,
        encoder=encoder,
        react=react or ReactConfig(),
        data=data or DataConfig(),
        loop=loop or LoopConfig(),
    )
    run_job(job, on or TrainRunnerConfig())
    return out


def load_react(
    run: str,
    *,
    step: int | None = None,
    ema: bool = False,
    wise_alpha: float = 1.0,
    encoder: EncoderConfig | None = None,
) -> Encoder:
    """The customised CLIP of a REACT run: ``encode_images`` and ``encode_texts``, or ``.model`` for open_clip's module.

    Args:
        run: folder of the run.
        step: a checkpoint's step; the newest, unless given.
        ema: load the moving average of the parameters.
        wise_alpha: WiSE-FT interpolation weight: 0 = frozen model, 1 = customised model.
        encoder: the frozen model at its current path, if it has moved; its weights must be the same.

    Raises:
        UsageError: the run, checkpoint or average does not exist.
        EncoderError: the frozen model cannot be loaded, or has other weights.
        CorruptMemoryError: a checkpoint is damaged.
    """
    from trainer.react.load import CheckpointRef, load_run

    return load_run(CheckpointRef(run=run, step=step, ema=ema, wise_alpha=wise_alpha, encoder=encoder)).encoder


def train_reco(
    memory: Memory | str,
    *,
    train: str,
    out: str,
    fusion: FusionConfig | None = None,
    neighbours: NeighbourConfig | None = None,
    loop: LoopConfig | None = None,
    clusters: str | None = None,
    on: TrainRunnerConfig | None = None,
) -> str:
    """Train a fusion of embeddings with neighbours from a memory (RECO) → ``out``, for ``load_reco``.

    Args:
        memory: an open memory, or its folder; both modalities indexed.
        train: the training pairs: a memory of the same model, or sources to embed, as ``embed`` takes them.
        out: folder of the run; an unfinished run there is resumed.
        fusion: the fusion transformer.
        neighbours: which rows are retrieved for a training pair.
        loop: epochs, global batch, optimizer, checkpoints.
        clusters: parquet file of pair keys and clusters of one artwork, which do not retrieve each other.
        on: this process, or workers of a Ray cluster.

    Raises:
        UsageError: settings do not fit together.
        EncoderError: the training pairs were embedded with another model.
        ConfigMismatchError: ``out`` holds a run of other settings.
        LossError: the loss is not finite.
    """
    from trainer.loop.launch import run_job
    from trainer.reco.job import RecoJob, RecoPlan, prepare_neighbours

    on = on or TrainRunnerConfig()
    plan = RecoPlan(
        memory=memory if isinstance(memory, str) else memory.store.root,
        train=train,
        clusters=clusters,
        neighbours=neighbours or NeighbourConfig(),
        fusion=fusion or FusionConfig(),
        loop=loop or published_loop(),
        positives="own",
    )
    if plan.check_unfinished(out):
        stored = prepare_neighbours(plan, out, partial(start_runner, on))
        run_job(RecoJob(plan=plan, out=out, neighbours=stored), on)
    return out


def load_reco(
    run: str,
    *,
    step: int | None = None,
    ema: bool = False,
    k: int | None = None,
    encoder: EncoderConfig | None = None,
) -> "RecoModel":
    """The refined CLIP of a RECO run: ``encode_image(images, memory)``, ``encode_text(texts, memory)``.

    Args:
        run: folder of the run.
        step: a checkpoint's step; the newest, unless given.
        ema: load the moving average of the parameters.
        k: rows to retrieve (default: as in training).
        encoder: the frozen model at its current path, if it has moved; its weights must be the same.

    Raises:
        UsageError: the run, checkpoint or average does not exist; or k differs from training though ranks were trained.
        CorruptMemoryError: a checkpoint is damaged.
    """
    from trainer.reco.model import RecoModel

    return RecoModel.load(run, encoder=encoder, step=step, ema=ema, k=k)
