"""What an evaluation is asked for: model, set, the set that settings are chosen on, and where results go."""

from dataclasses import dataclass
from pathlib import Path

from memory_builder.errors import UsageError
from memory_builder.model.encoder import EncoderConfig
from trainer.react.load import Choice


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What all tasks share."""

    encoder: EncoderConfig | Choice
    """A model, or the customised model of a run."""
    dataset: Path
    out: str | Path
    """A local path or an fsspec URL; so is ``features``."""
    split: str = "test"
    dev: Path | None = None
    """Another set, on which hyperparameters are chosen. None: published defaults."""
    dev_split: str = "test"
    train_split: str = "train"
    batch_size: int = 64
    features: str | Path | None = None
    """Where embeddings of sets are kept, for several runs of one model to share; in ``out`` unless given."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UsageError(f"--batch-size {self.batch_size}: at least 1")
        if self.dev is None:
            return
        same = self.dev.resolve() == self.dataset.resolve()
        if same and self.dev_split == self.split:
            raise UsageError(
                f"--dev {self.dev} is the set that is measured: settings chosen on it make its figures too good. Name "
                "another folder, or another split with --dev-split; without --dev published defaults are used"
            )
