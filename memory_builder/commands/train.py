"""``memory-builder train``: react, reco and export."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, Positional, arg, subcommand

from memory_builder.commands.options import log_loading_of_run
from memory_builder.commands.train_reco import TrainReco
from memory_builder.errors import UsageError
from memory_builder.model.encoder import log_loading, named_encoder
from trainer.loop.config import LoopConfig, TrainRunnerConfig
from trainer.react.config import DataConfig, ReactConfig


@dataclass(frozen=True, kw_only=True)
class TrainReact:
    """Customise a frozen CLIP on a subset by training gated blocks or a tower (REACT). Run it again to resume."""

    subset: Annotated[str, Positional, arg(metavar="SUBSET")]
    """Folder of tars that retrieve wrote, or any folder of webdataset tars."""
    out: str
    """Folder of the run, for checkpoints, metrics and results of evaluate."""
    model: str | None = None
    """open_clip model name, or local-dir:FOLDER (default: the model that the subset was retrieved with)."""
    pretrained: str | None = None
    """Pretrained tag or weights file of --model."""
    react: OmitArgPrefixes[ReactConfig] = field(default_factory=ReactConfig)
    data: OmitArgPrefixes[DataConfig] = field(default_factory=DataConfig)
    training: OmitArgPrefixes[LoopConfig] = field(default_factory=LoopConfig)
    start_from: str | None = None
    """Initialise with the parameters of another run, or of a checkpoint that REACT's authors released."""
    cache: str | None = None
    """Folder for scanned pairs, caption embeddings and outputs of frozen layers, which several runs may share
    (default: in --out)."""
    any_encoder: bool = False
    """Allow a model other than the one that the subset was retrieved with."""
    runner: OmitArgPrefixes[TrainRunnerConfig] = field(default_factory=TrainRunnerConfig)

    def run(self) -> int:
        from trainer.react.subset import described_encoder

        encoder = named_encoder(self.model, self.pretrained) or described_encoder(self.subset)
        if encoder is None:
            raise UsageError(f"{self.subset} does not name the model that it was retrieved with: name --model")
        log_loading(encoder.model)
        from trainer.loop.launch import run_job
        from trainer.react.job import ReactJob

        job = ReactJob(
            subset=self.subset,
            out=self.out,
            encoder=encoder,
            react=self.react,
            data=self.data,
            loop=self.training,
            start_from=self.start_from,
            cache=self.cache,
            any_encoder=self.any_encoder,
        )
        run_job(job, self.runner)
        print(f"run: {self.out}")
        return 0


@dataclass(frozen=True, kw_only=True)
class ExportRun:
    """Export a customised model for other programs."""

    source: Annotated[str, Positional, arg(metavar="RUN")]
    """Folder of a run of train react, or with --model a checkpoint that REACT's authors released."""
    out: str
    """Folder to write, or the .safetensors file for --as react."""
    as_: Annotated[Literal["open-clip", "react"], arg(name="as")] = "open-clip"
    """open-clip: a local-dir: folder with a deeper plain ViT, which open_clip loads by itself. react: a checkpoint in
    the format of those that REACT's authors released."""
    model: str | None = None
    """open_clip model name of a released checkpoint; OpenAI's weights need a -quickgelu one."""
    step: int | None = None
    """Step of the checkpoint (default: the newest)."""
    ema: bool = False
    """Export the moving average instead of the parameters."""
    wise_alpha: Annotated[float, arg(aliases=["--share"])] = 1.0
    """WiSE-FT interpolation weight: 0 = frozen model, 1 = customised model. --share is its former name."""

    def run(self) -> int:
        if self.model is None:
            log_loading_of_run(self.source)
        from trainer.react.export import export_plain, export_released
        from trainer.react.load import CheckpointRef, load_run
        from trainer.react.released_checkpoint import load_released

        if "://" in self.out:
            raise UsageError(f"--out {self.out}: name a local path, and copy the export to its destination")
        out = Path(self.out)
        if self.model is not None:
            if self.step is not None or self.ema or self.wise_alpha != 1:
                raise UsageError(
                    "--step, --ema and --wise-alpha are for a run, not for a released checkpoint (--model)"
                )
            model, name = load_released(self.model, self.source), self.model
        else:
            ref = CheckpointRef(run=self.source, step=self.step, ema=self.ema, wise_alpha=self.wise_alpha)
            encoder = load_run(ref).encoder
            model, name = encoder.model, encoder.config.model
        if self.as_ == "react":
            export_released(model, out)
        else:
            export_plain(model, name, out)
        print(f"model: {out}" if self.as_ == "react" else f"model: local-dir:{out}")
        return 0


Training = (
    Annotated[TrainReact, subcommand("react")]
    | Annotated[TrainReco, subcommand("reco")]
    | Annotated[ExportRun, subcommand("export")]
)


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train REACT on a subset or RECO on a memory, or export a trained model."""

    method: OmitSubcommandPrefixes[OmitArgPrefixes[Training]]

    def run(self) -> int:
        return self.method.run()
