"""Commands that measure: evaluate and report. The one door to the trainer's evaluation."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, Positional, arg, subcommand

from memory_builder.commands.console import print_table
from memory_builder.commands.options import LinkOptions, say_loading_of_run
from memory_builder.errors import UsageError
from memory_builder.model.encoder import EncoderConfig, named_encoder, say_loading

if TYPE_CHECKING:
    from trainer.evaluate.config import Setting
    from trainer.evaluate.numbers.metrics import Figures
    from trainer.evaluate.results import Result
    from trainer.react.load import Choice


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What all tasks ask for."""

    dataset: Path
    """The set: a CLIP_benchmark webdataset folder, or a folder of pictures for each class."""
    out: str | None = None
    """Folder for results, which go to its eval/, and for embeddings of sets, a local path or an fsspec URL; the one of
    --run unless given."""
    features: str | None = None
    """Folder for embeddings of sets, likewise, for several runs of one model to share; in --out unless given."""
    model: str | None = None
    """An open_clip model name, or local-dir:FOLDER. Evaluated in fp32. With --run, where that run's frozen model is, if
    it is from elsewhere or has moved."""
    pretrained: str | None = None
    """A pretrained tag or a weights file of --model."""
    run: str | None = None
    """Folder of a run of train react, for its customised model; for reco, of a run of train reco."""
    step: int | None = None
    """A checkpoint of --run; its newest unless given."""
    ema: bool = False
    """The moving average that --run kept, instead of its parameters."""
    share: float = 1.0
    """Of what --run learnt: 0 is the frozen model, 1 the customised one, between them their mixture (WiSE-FT)."""
    split: str = "test"
    """The split that is measured."""
    batch_size: int = 64
    """Pictures a forward pass."""
    json: bool = False
    """One JSON object a result."""

    def setting(self, choosing: "DevOptions | None" = None, train_split: str = "train") -> "Setting":
        """As the trainer takes it."""
        from trainer.evaluate.config import Setting

        choosing = choosing or DevOptions()
        out = self.out or self.run
        if not out:
            raise UsageError("--out is missing: a folder for results")
        return Setting(
            encoder=self._model(),
            dataset=self.dataset,
            out=out,
            features=self.features,
            split=self.split,
            dev=choosing.dev or (self.dataset if choosing.dev_split is not None else None),
            dev_split=choosing.dev_split or "test",
            train_split=train_split,
            batch_size=self.batch_size,
        )

    def say_loading(self) -> None:
        """Tell which model is going to be loaded, before the trainer is imported."""
        named = named_encoder(self.model, None)
        if named is not None:
            say_loading(named.model)
        elif self.run is not None:
            say_loading_of_run(self.run)

    def check_pretrained(self) -> None:
        """Raises UsageError where it would have no effect."""
        if self.model is None and self.pretrained is not None:
            raise UsageError("--pretrained is for --model: a run knows its own weights")

    def _model(self) -> "EncoderConfig | Choice":
        if self.model is None and self.run is None:
            raise UsageError("name either --model or --run, the folder of a run of train react")
        self.check_pretrained()
        if self.run is None:
            if self.step is not None or self.ema or self.share != 1:
                raise UsageError("--step, --ema and --share are for --run")
            return EncoderConfig(model=str(self.model), pretrained=self.pretrained)
        from trainer.react.load import Choice

        moved = named_encoder(self.model, self.pretrained)
        return Choice(run=self.run, step=self.step, ema=self.ema, share=self.share, encoder=moved)

    def tell(self, results: "Sequence[Result]") -> int:
        """Print the results; the exit code."""
        if self.json:
            for result in results:
                print(json.dumps(result.line()))
            return 0
        for result in results:
            rows = [_row("all", result.figures), *(_row(tier, some) for tier, some in result.figures.tiers.items())]
            shots = f", {result.config['shots']} shots" if "shots" in result.config else ""
            print_table(f"{result.method}{shots} on {result.dataset['name']} {self.split}", tuple(rows[0]), rows)
            if result.figures.remark:
                print(result.figures.remark)
        return 0


@dataclass(frozen=True, kw_only=True)
class ZeroShot:
    """Classify by class names alone; multilabel sets too."""

    options: OmitArgPrefixes[EvaluateOptions]

    def run(self) -> int:
        from trainer.evaluate.tasks.frozen import evaluate_zero_shot

        return self.options.tell(evaluate_zero_shot(self.options.setting()))


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Find pictures by their captions and captions by their pictures."""

    options: OmitArgPrefixes[EvaluateOptions]
    positives: Literal["own", "caption"] = "own"
    """own: a picture's own captions are right. caption: so are equal captions of other pictures."""

    def run(self) -> int:
        from trainer.evaluate.tasks.frozen import evaluate_retrieval

        return self.options.tell(evaluate_retrieval(self.options.setting(), self.positives))


@dataclass(frozen=True, kw_only=True)
class DevOptions:
    """Where settings are chosen, never on what is measured."""

    dev: Path | None = None
    """A set of its own to choose settings on; without it published defaults are used."""
    dev_split: str | None = None
    """The split of --dev that is answered, test unless given; without --dev, of --dataset."""


@dataclass(frozen=True, kw_only=True)
class LearnOptions:
    """What is learnt from."""

    train_split: str = "train"
    """The split to learn from, of --dataset and of --dev."""
    shots: tuple[str, ...] = ("1", "2", "4", "8", "16", "all")
    """Pictures of each class, one result for each number."""
    n_seeds: int = 3
    """Draws of pictures, averaged."""


@dataclass(frozen=True, kw_only=True)
class LinearProbe:
    """Train a head on frozen features from a few pictures of each class, started from the class names."""

    options: OmitArgPrefixes[EvaluateOptions]
    choosing: OmitArgPrefixes[DevOptions] = field(default_factory=DevOptions)
    learning: OmitArgPrefixes[LearnOptions] = field(default_factory=LearnOptions)

    def run(self) -> int:
        from trainer.evaluate.tasks.few_shot import evaluate_linear_probe
        from trainer.evaluate.tasks.shots import ShotOptions

        shots = ShotOptions(shots=self.learning.shots, n_seeds=self.learning.n_seeds)
        setting = self.options.setting(self.choosing, self.learning.train_split)
        return self.options.tell(evaluate_linear_probe(setting, shots))


@dataclass(frozen=True, kw_only=True)
class FewShot:
    """Fine-tune the image tower, or its last layers, on a few pictures of each class."""

    options: OmitArgPrefixes[EvaluateOptions]
    choosing: OmitArgPrefixes[DevOptions] = field(default_factory=DevOptions)
    learning: OmitArgPrefixes[LearnOptions] = field(default_factory=LearnOptions)
    last_layers: int | None = None
    """Transformer blocks that learn, with what follows them; the whole tower unless given."""

    def run(self) -> int:
        from trainer.evaluate.tasks.few_shot import evaluate_few_shot
        from trainer.evaluate.tasks.shots import ShotOptions

        shots = ShotOptions(shots=self.learning.shots, n_seeds=self.learning.n_seeds)
        setting = self.options.setting(self.choosing, self.learning.train_split)
        return self.options.tell(evaluate_few_shot(setting, shots, self.last_layers))


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """What a memory is worth without training: kNN, priming, cache, WiSE head, mean fusion, and controls."""

    memory: str
    """Folder of the memory, built with --model."""
    options: OmitArgPrefixes[EvaluateOptions]
    choosing: OmitArgPrefixes[DevOptions] = field(default_factory=DevOptions)
    pixels: bool = True
    """Also the pixel nearest neighbour, which decodes every picture of the memory that names a class."""

    def run(self) -> int:
        from trainer.evaluate.with_memory.baseline_task import evaluate_baselines

        return self.options.tell(
            evaluate_baselines(self.options.setting(self.choosing), self.memory, pixels=self.pixels)
        )


@dataclass(frozen=True, kw_only=True)
class Reco:
    """What a fusion that train reco made is worth: pictures refined from a memory, texts, and both, beside neither."""

    memory: str
    """Folder of the memory to look things up in; any that was built with the run's frozen model."""
    options: OmitArgPrefixes[EvaluateOptions]
    k: Annotated[int | None, arg(aliases=["-k"])] = None
    """Neighbours, if not as many as in training."""
    order: Literal["average-then-refine", "refine-then-average"] = "average-then-refine"
    """Of a class's prompts: one look-up with their mean, or one with each."""
    positives: Literal["own", "caption"] = "own"
    """Of captioned pictures, as for retrieval."""

    def run(self) -> int:
        from trainer.evaluate.with_memory.reco_task import Refinement, encoder_of, evaluate_reco

        options = self.options
        if options.run is None or options.share != 1:
            raise UsageError("name --run, the folder of a run of train reco; --share is for runs of train react")
        options.check_pretrained()
        refinement = Refinement(
            run=options.run, memory=self.memory, k=self.k, order=self.order, step=options.step, ema=options.ema
        )
        model = encoder_of(options.run) if options.model is None else None
        setting = replace(
            options,
            out=options.out or options.run,
            run=None,
            step=None,
            ema=False,
            model=model.model if model else options.model,
            pretrained=model.pretrained if model else options.pretrained,
        ).setting()
        return options.tell(evaluate_reco(setting, refinement, self.positives))


Task = (
    Annotated[ZeroShot, subcommand("zero-shot")]
    | Annotated[LinearProbe, subcommand("linear-probe")]
    | Annotated[FewShot, subcommand("few-shot")]
    | Annotated[Retrieval, subcommand("retrieval")]
    | Annotated[Baselines, subcommand("baselines")]
    | Annotated[Reco, subcommand("reco")]
)


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure a model on a set of pictures, with intervals over its classes."""

    task: OmitSubcommandPrefixes[OmitArgPrefixes[Task]]

    def run(self) -> int:
        self.task.options.say_loading()
        return self.task.run()


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write what runs have found as one HTML page that needs no network."""

    run_folders: Annotated[tuple[str, ...], Positional, arg(metavar="RUN…")]
    """Folders that evaluate wrote to with --out."""
    out: str = "report.html"
    """The page: a local path or an fsspec URL."""
    links: OmitArgPrefixes[LinkOptions] = field(default_factory=LinkOptions)

    def run(self) -> int:
        from trainer.evaluate.report.write import write_report

        roots, hosts = self.links.local_root, self.links.allow_host
        print(f"report: {write_report(self.run_folders, self.out, local_roots=roots, allow_hosts=hosts)}")
        return 0


def _row(label: str, figures: "Figures") -> dict[str, str]:
    numbers = {}
    for name, value in figures.metrics.items():
        ci95 = figures.ci95[name]
        numbers[name] = f"{value:.4f} [{ci95[0]:.4f}, {ci95[1]:.4f}]" if ci95 else f"{value:.4f}"
    return {"classes": label, "number": str(figures.n_classes), "pictures": str(figures.n), **numbers}
