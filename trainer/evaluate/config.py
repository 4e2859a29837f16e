"""Settings of an evaluation: model, test set, dev set, and the folder of the results."""

from dataclasses import dataclass
from pathlib import Path

from memory_builder.errors import UsageError
from memory_builder.model.encoder import EncoderConfig
from trainer.react.load import CheckpointRef


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """Settings that all tasks share."""

    encoder: EncoderConfig | CheckpointRef
    """The model: an open_clip model, or the customised model of a run."""
    dataset: Path
    """The test set."""
    out: str | Path
    """Folder of the results: a local path or an fsspec URL; so is ``features``."""
    split: str = "test"
    dev: Path | None = None
    """Another set, to choose hyperparameters on. None: published defaults."""
    dev_split: str = "test"
    train_split: str = "train"
    batch_size: int = 64
    features: str | Path | None = None
    """Folder of the embedded sets, which several runs of one model may share (default: in ``out``)."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UsageError(f"--batch-size {self.batch_size}: at least 1")
        if self.dev is None:
            return
        same = self.dev.resolve() == self.dataset.resolve()
        if same and self.dev_split == self.split:
            raise UsageError(
                f"--dev {self.dev} is the test set: hyperparameters chosen on it make its metrics too good. Name "
                "another folder, or another split with --dev-split; without --dev published defaults are used"
            )
