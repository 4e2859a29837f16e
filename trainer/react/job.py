"""``train react`` as a job: its settings, and the work of each worker."""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from memory_builder.base.runner import available_threads
from memory_builder.catalog.trusted_sources import remember_model
from memory_builder.errors import MemoryBuilderError, UsageError
from memory_builder.model.encoder import Encoder, EncoderConfig
from memory_builder.storage.store import Store
from trainer.loop.checkpoint import is_finished, newest_checkpoint
from trainer.loop.config import LoopConfig, decisive
from trainer.loop.distributed import wait_for_all, world
from trainer.loop.launch import make_absolute
from trainer.loop.loop import Report, make_sampler, train
from trainer.loop.run_config import create_or_compare_config, refuse_other_settings
from trainer.loop.sampler import local_batch_size
from trainer.react.config import DataConfig, ReactConfig
from trainer.react.learner import ReactLearner
from trainer.react.precompute import Precompute
from trainer.react.subset import Subset, check_encoder, open_subset, prepare_pairs, scan_tars
from trainer.react.towers import frozen_digest
from trainer.react.warm_start import start_from

KIND = "react"


@dataclass(frozen=True, kw_only=True, slots=True)
class ReactJob:
    """A ``trainer.loop.launch.Job`` of REACT training."""

    subset: str
    out: str
    encoder: EncoderConfig
    react: ReactConfig = field(default_factory=ReactConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    start_from: str | None = None
    """A run, or a checkpoint released by REACT's authors, to load initial parameters from."""
    cache: str | None = None
    """Folder for scanned pairs, caption embeddings and outputs of frozen layers (default: in ``out``)."""
    any_encoder: bool = False

    def __post_init__(self) -> None:
        if self.react.gates_only and self.start_from is None:
            raise UsageError("--gates-only needs --start-from: gates over random blocks are of no use")
        make_absolute(self, "subset", "out", "start_from", "cache")

    def check_unfinished(self) -> bool:
        """Refuse settings that do not fit the run's folder; False if the run has taken its last step.

        Raises:
            SourceError: no such subset.
            ConfigMismatchError: the folder holds a run with other settings.
        """
        torch.set_num_threads(available_threads())  # faiss, in this process, may have set another number
        run, subset = Store(self.out), open_subset(self.subset)
        refuse_other_settings(run, self._settings(subset))
        return not is_finished(run)

    def work(self, report: Report) -> None:
        """Train on one worker, in a process group if there are several.

        Raises:
            RequestError: model, subset and settings do not fit each other.
            MemoryBuilderError: see ``trainer.loop.loop.train``.
        """
        local_batch_size(self.loop.batch_size, world())  # refused here, not after hours of reading
        run, subset = Store(self.out), open_subset(self.subset)
        cache = Store(self.cache or f"{run.root}/cache")
        encoder = Encoder(EncoderConfig(model=self.encoder.model, pretrained=self.encoder.pretrained, precision="fp32"))
        if not self.any_encoder:
            check_encoder(subset, encoder.fingerprint, self.encoder.model)
        scan_tars(subset, cache)
        if not world().is_first:
            wait_for_all()
        run.sweep()
        pairs = prepare_pairs(subset, cache)
        make_sampler(self.loop, len(pairs))
        if world().is_first:
            remember_model(self.encoder)
            identity = {"kind": KIND, "fingerprint": encoder.fingerprint}
            create_or_compare_config(run, self._settings(subset) | identity)
            wait_for_all()
        learner = self.learner(encoder)
        if self.start_from is not None:  # a resumed run has its own checkpoint; ``start_from`` may have changed since
            source = self.start_from if newest_checkpoint(run) is None else self.out
            start_from(source, learner, encoder.fingerprint)
        frozen = frozen_digest(encoder.model)
        precompute = Precompute(
            encoder=encoder, learner=learner, pairs=pairs, cache=cache, data=self.data, loop=self.loop
        )
        batches, peak = precompute.source(), self.react.learning_rate
        train(learner, batches, self.loop, run, learning_rate=peak, device=encoder.device, report=report)
        if frozen_digest(encoder.model) != frozen:
            raise MemoryBuilderError(f"{run.root}: frozen tensors changed while training; this is a bug, report it")

    def learner(self, encoder: Encoder) -> ReactLearner:
        """The encoder's model with its trained parameters, initialised alike on every worker."""
        if self.loop.precision == "fp64":
            encoder.model.double()
        torch.manual_seed(self.loop.seed)
        return ReactLearner(encoder.model, self.react, self.encoder.model)

    def _settings(self, subset: Subset) -> dict[str, Any]:
        """The settings that the trained parameters depend on."""
        settings = {"react": asdict(self.react), "data": decisive(self.data), "loop": decisive(self.loop)}
        encoder = {"model": self.encoder.model, "pretrained": self.encoder.pretrained}
        return settings | {"encoder": encoder, "subset_digest": subset.digest, "start_from": self.start_from}
