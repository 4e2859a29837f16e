"""``memory-builder evaluate`` and ``memory-builder report``."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, Positional, arg, subcommand

from memory_builder.commands.console import print_table
from memory_builder.commands.options import LinkOptions, log_loading_of_run
from memory_builder.errors import UsageError
from memory_builder.model.encoder import EncoderConfig, log_loading, named_encoder

if TYPE_CHECKING:
    from trainer.evaluate.config import EvalConfig
    from trainer.evaluate.numbers.metrics import Figures
    from trainer.evaluate.results import Result
    from trainer.react.load import CheckpointRef


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Model, dataset and result folder."""

    dataset: Path
    """Test set: a CLIP_benchmark webdataset folder, or a folder of pictures for each class."""
    out: str | None = None
    """Folder of the results (its eval/) and of embedded sets, a local path or fsspec URL (default: that of --run)."""
    features: str | None = None
    """Folder of embedded sets, which several runs of one model may share (default: in --out)."""
    model: str | None = None
    """open_clip model name, or local-dir:FOLDER; evaluated in fp32. With --run: where the run's frozen model is now."""
    pretrained: str | None = None
    """Pretrained tag or weights file of --model."""
    run: str | None = None
    """Folder of a run of train react, to evaluate its customised model; for reco, of a run of train reco."""
    step: int | None = None
    """Step of the checkpoint of --run (default: the newest)."""
    ema: bool = False
    """Evaluate the moving average of --run instead of its parameters."""
    wise_alpha: Annotated[float, arg(aliases=["--share"])] = 1.0
    """WiSE-FT interpolation weight: 0 = frozen model, 1 = customised model. --share is its former name."""
    split: str = "test"
    """Split of --dataset to evaluate."""
    batch_size: int = 64
    """Pictures of a forward pass."""
    json: bool = False
    """Print one JSON object for each result."""

    def config(self, choosing: "DevOptions | None" = None, train_split: str = "train") -> "EvalConfig":
        """The configuration of the trainer."""
        from trainer.evaluate.config import EvalConfig

        choosing = choosing or DevOptions()
        out = self.out or self.run
        if not out:
            raise UsageError("--out is missing: name a folder for the results")
        return EvalConfig(
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

    def log_loading(self) -> None:
        """Print which model is loaded, before importing the trainer."""
        named = named_encoder(self.model, None)
        if named is not None:
            log_loading(named.model)
        elif self.run is not None:
            log_loading_of_run(self.run)

    def check_pretrained(self) -> None:
        """Refuse --pretrained without --model, where it has no effect."""
        if self.model is None and self.pretrained is not None:
            raise UsageError("--pretrained needs --model; a run records its weights")

    def _model(self) -> "EncoderConfig | CheckpointRef":
        if self.model is None and self.run is None:
            raise UsageError("name either --model or --run, the folder of a run of train react")
        self.check_pretrained()
        if self.run is None:
            if self.step is not None or self.ema or self.wise_alpha != 1:
                raise UsageError("--step, --ema and --wise-alpha need --run")
            return EncoderConfig(model=str(self.model), pretrained=self.pretrained)
        from trainer.react.load import CheckpointRef

        moved = named_encoder(self.model, self.pretrained)
        return CheckpointRef(run=self.run, step=self.step, ema=self.ema, wise_alpha=self.wise_alpha, encoder=moved)

    def print_results(self, results: "Sequence[Result]") -> int:
        """Print the results; returns the exit code."""
        if self.json:
            for result in results:
                print(json.dumps(result.line()))
            return 0
        for result in results:
            rows = [
                _row("all", result.figures),
                *(_row(tier, of_tier) for tier, of_tier in result.figures.tiers.items()),
            ]
            shots = f", {result.config['shots']} shots" if "shots" in result.config else ""
            print_table(f"{result.method}{shots} on {result.dataset['name']} {self.split}", tuple(rows[0]), rows)
            if result.figures.remark:
                print(result.figures.remark)
        return 0


@dataclass(frozen=True, kw_only=True)
class EvaluateZeroShot:
    """Evaluate classification by class names alone, also on multilabel sets."""

    evaluation: OmitArgPrefixes[EvaluateOptions]

    def run(self) -> int:
        from trainer.evaluate.tasks.frozen import evaluate_zero_shot

        return self.evaluation.print_results(evaluate_zero_shot(self.evaluation.config()))


@dataclass(frozen=True, kw_only=True)
class EvaluateRetrieval:
    """Evaluate retrieval of pictures by captions and of captions by pictures."""

    evaluation: OmitArgPrefixes[EvaluateOptions]
    positives: Literal["own", "caption"] = "own"
    """Positives of a picture: its own captions, or also equal captions of other pictures."""

    def run(self) -> int:
        from trainer.evaluate.tasks.frozen import evaluate_retrieval

        return self.evaluation.print_results(evaluate_retrieval(self.evaluation.config(), self.positives))


@dataclass(frozen=True, kw_only=True)
class DevOptions:
    """Dev set to choose hyperparameters on."""

    dev: Path | None = None
    """Set to choose hyperparameters on (default: published hyperparameters)."""
    dev_split: str | None = None
    """Split of --dev (default: test); without --dev a split of --dataset."""


@dataclass(frozen=True, kw_only=True)
class LearnOptions:
    """Training pictures."""

    train_split: str = "train"
    """Split of --dataset, and of --dev, to train on."""
    shots: tuple[str, ...] = ("1", "2", "4", "8", "16", "all")
    """Numbers of pictures of each class, with a result for each."""
    n_seeds: int = 3
    """Number of draws of pictures, over which metrics are averaged."""


@dataclass(frozen=True, kw_only=True)
class EvaluateLinearProbe:
    """Evaluate a linear head on frozen features, trained on a few pictures of each class."""

    evaluation: OmitArgPrefixes[EvaluateOptions]
    dev_set: OmitArgPrefixes[DevOptions] = field(default_factory=DevOptions)
    training: OmitArgPrefixes[LearnOptions] = field(default_factory=LearnOptions)

    def run(self) -> int:
        from trainer.evaluate.tasks.few_shot import evaluate_linear_probe
        from trainer.evaluate.tasks.shots import ShotOptions

        shots = ShotOptions(shots=self.training.shots, n_seeds=self.training.n_seeds)
        config = self.evaluation.config(self.dev_set, self.training.train_split)
        return self.evaluation.print_results(evaluate_linear_probe(config, shots))


@dataclass(frozen=True, kw_only=True)
class EvaluateFewShot:
    """Evaluate the image tower fine-tuned on a few pictures of each class."""

    evaluation: OmitArgPrefixes[EvaluateOptions]
    dev_set: OmitArgPrefixes[DevOptions] = field(default_factory=DevOptions)
    training: OmitArgPrefixes[LearnOptions] = field(default_factory=LearnOptions)
    last_layers: int | None = None
    """Number of last transformer blocks to train (default: the whole tower)."""

    def run(self) -> int:
        from trainer.evaluate.tasks.few_shot import evaluate_few_shot
        from trainer.evaluate.tasks.shots import ShotOptions

        shots = ShotOptions(shots=self.training.shots, n_seeds=self.training.n_seeds)
        config = self.evaluation.config(self.dev_set, self.training.train_split)
        return self.evaluation.print_results(evaluate_few_shot(config, shots, self.last_layers))


@dataclass(frozen=True, kw_only=True)
class EvaluateBaselines:
    """Evaluate training-free methods that use a memory: kNN, priming, cache, WiSE head, mean fusion, and controls."""

    memory: str
    """Folder of the memory, built with --model."""
    evaluation: OmitArgPrefixes[EvaluateOptions]
    dev_set: OmitArgPrefixes[DevOptions] = field(default_factory=DevOptions)
    pixels: bool = True
    """Also evaluate the pixel nearest neighbour, which decodes the memory's pictures whose captions name a class."""

    def run(self) -> int:
        from trainer.evaluate.with_memory.baseline_task import evaluate_baselines

        return self.evaluation.print_results(
            evaluate_baselines(self.evaluation.config(self.dev_set), self.memory, pixels=self.pixels)
        )


@dataclass(frozen=True, kw_only=True)
class EvaluateReco:
    """Evaluate a run of train reco: images, texts, both or none refined with neighbours from a memory."""

    memory: str
    """Folder of the memory to search, built with the run's frozen model."""
    evaluation: OmitArgPrefixes[EvaluateOptions]
    k: Annotated[int | None, arg(aliases=["-k"])] = None
    """Number of neighbours (default: as in training)."""
    order: Literal["average-then-refine", "refine-then-average"] = "average-then-refine"
    """Refine the mean of a class's prompts with one search, or each prompt and then average."""
    positives: Literal["own", "caption"] = "own"
    """Positives of a retrieval set, as for evaluate retrieval."""

    def run(self) -> int:
        from trainer.evaluate.with_memory.reco_task import Refinement, encoder_of, evaluate_reco

        options = self.evaluation
        if options.run is None or options.wise_alpha != 1:
            raise UsageError("name --run, the folder of a run of train reco; --wise-alpha is for runs of train react")
        options.check_pretrained()
        refinement = Refinement(
            run=options.run, memory=self.memory, k=self.k, order=self.order, step=options.step, ema=options.ema
        )
        model = encoder_of(options.run) if options.model is None else None
        config = replace(
            options,
            out=options.out or options.run,
            run=None,
            step=None,
            ema=False,
            model=model.model if model else options.model,
            pretrained=model.pretrained if model else options.pretrained,
        ).config()
        return options.print_results(evaluate_reco(config, refinement, self.positives))


EvaluateTask = (
    Annotated[EvaluateZeroShot, subcommand("zero-shot")]
    | Annotated[EvaluateLinearProbe, subcommand("linear-probe")]
    | Annotated[EvaluateFewShot, subcommand("few-shot")]
    | Annotated[EvaluateRetrieval, subcommand("retrieval")]
    | Annotated[EvaluateBaselines, subcommand("baselines")]
    | Annotated[EvaluateReco, subcommand("reco")]
)


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Evaluate a model on a set of pictures, with confidence intervals over its classes."""

    task: OmitSubcommandPrefixes[OmitArgPrefixes[EvaluateTask]]

    def run(self) -> int:
        self.task.evaluation.log_loading()
        return self.task.run()


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write the results of runs as one HTML page that needs no network."""

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
