"""Commands that train. With ``training_reco`` the one door to the trainer's training."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, Positional, arg, subcommand

from memory_builder.commands.options import say_loading_of_run
from memory_builder.commands.train_reco import Reco
from memory_builder.errors import UsageError
from memory_builder.model.encoder import named_encoder, say_loading
from trainer.loop.config import LoopConfig, Where
from trainer.react.config import DataConfig, ReactConfig


@dataclass(frozen=True, kw_only=True)
class React:
    """Customise a frozen CLIP on a subset, with gated blocks or a tower that learns. Run it again to go on."""

    subset: Annotated[str, Positional, arg(metavar="SUBSET")]
    """Folder of tars that retrieve wrote, or any folder of webdataset tars."""
    out: str
    """Folder of the run: checkpoints, metrics, and what evaluate finds."""
    model: str | None = None
    """An open_clip model name, or local-dir:FOLDER; the one that chose the subset unless given."""
    pretrained: str | None = None
    """A pretrained tag or a weights file of --model."""
    react: OmitArgPrefixes[ReactConfig] = field(default_factory=ReactConfig)
    data: OmitArgPrefixes[DataConfig] = field(default_factory=DataConfig)
    loop: OmitArgPrefixes[LoopConfig] = field(default_factory=LoopConfig)
    start_from: str | None = None
    """Begin with the parameters of another run, or of a checkpoint that REACT's authors released."""
    cache: str | None = None
    """Where what is computed once is kept, for several runs to share; in --out unless given."""
    any_encoder: bool = False
    """Train another model than the one that chose the subset."""
    on: OmitArgPrefixes[Where] = field(default_factory=Where)

    def run(self) -> int:
        from trainer.react.subset import described_encoder

        encoder = named_encoder(self.model, self.pretrained) or described_encoder(self.subset)
        if encoder is None:
            raise UsageError(f"{self.subset} does not say which model chose it: name --model")
        say_loading(encoder.model)
        from trainer.loop.launch import run_job
        from trainer.react.job import ReactJob

        job = ReactJob(
            subset=self.subset,
            out=self.out,
            encoder=encoder,
            react=self.react,
            data=self.data,
            loop=self.loop,
            start_from=self.start_from,
            cache=self.cache,
            any_encoder=self.any_encoder,
        )
        run_job(job, self.on)
        print(f"run: {self.out}")
        return 0


@dataclass(frozen=True, kw_only=True)
class ExportRun:
    """Write a customised model for other programs."""

    source: Annotated[str, Positional, arg(metavar="RUN")]
    """Folder of a run of train react, or with --model a checkpoint that REACT's authors released."""
    out: str
    """The folder, or for react the .safetensors file, to write."""
    as_: Annotated[Literal["open-clip", "react"], arg(name="as")] = "open-clip"
    """open-clip: a local-dir: folder with a deeper plain ViT, which open_clip loads by itself. react: a checkpoint as
    REACT's authors released theirs."""
    model: str | None = None
    """The architecture of a released checkpoint, by open_clip's name; OpenAI's weights need a -quickgelu one."""
    step: int | None = None
    """A checkpoint of the run; its newest unless given."""
    ema: bool = False
    """The moving average that the run kept, instead of its parameters."""
    share: float = 1.0
    """Of what was learnt: 0 is the frozen model, 1 the customised one, between them their mixture (WiSE-FT)."""

    def run(self) -> int:
        if self.model is None:
            say_loading_of_run(self.source)
        from trainer.react.export import export_plain, export_released
        from trainer.react.load import Choice, load_customised
        from trainer.react.released_checkpoint import load_released

        if "://" in self.out:
            raise UsageError(
                f"--out {self.out}: name a path on this machine, and copy what is written to where it belongs"
            )
        out = Path(self.out)
        if self.model is not None:
            if self.step is not None or self.ema or self.share != 1:
                raise UsageError(
                    "--step, --ema and --share are for a run; a released checkpoint (--model) is one state"
                )
            model, name = load_released(self.model, self.source), self.model
        else:
            choice = Choice(run=self.source, step=self.step, ema=self.ema, share=self.share)
            encoder = load_customised(choice).encoder
            model, name = encoder.model, encoder.config.model
        if self.as_ == "react":
            export_released(model, out)
        else:
            export_plain(model, name, out)
        print(f"model: {out}" if self.as_ == "react" else f"model: local-dir:{out}")
        return 0


Training = (
    Annotated[React, subcommand("react")]
    | Annotated[Reco, subcommand("reco")]
    | Annotated[ExportRun, subcommand("export")]
)


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train on a subset of pairs, or on what a memory returns."""

    what: OmitSubcommandPrefixes[OmitArgPrefixes[Training]]

    def run(self) -> int:
        return self.what.run()
