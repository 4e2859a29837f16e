"""``train react`` as work to be done: everything a worker needs to know, and the work itself."""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from memory_builder.base.runner import available_threads
from memory_builder.catalog.trusted import remember_model
from memory_builder.errors import MemoryBuilderError, UsageError
from memory_builder.model.encoder import Encoder, EncoderConfig
from memory_builder.storage.store import Store
from trainer.loop.checkpoint import is_finished, last_state
from trainer.loop.config import LoopConfig, decisive
from trainer.loop.distributed import wait_for_all, world
from trainer.loop.launch import make_absolute
from trainer.loop.loop import Report, order_of, train
from trainer.loop.run_config import refuse_begun_otherwise, settle_record
from trainer.loop.sampler import share_of
from trainer.react.config import DataConfig, ReactConfig
from trainer.react.learner import ReactLearner
from trainer.react.precompute import Prepared
from trainer.react.subset import Subset, check_encoder, open_subset, prepare_pairs, scan_tars
from trainer.react.towers import frozen_digest
from trainer.react.warm_start import start_from

KIND = "react"


@dataclass(frozen=True, kw_only=True, slots=True)
class ReactJob:
    """A ``trainer.loop.launch.Job``."""

    subset: str
    out: str
    encoder: EncoderConfig
    react: ReactConfig = field(default_factory=ReactConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    start_from: str | None = None
    """A run, or a checkpoint released by REACT's authors, whose parameters to begin with."""
    cache: str | None = None
    """Where what is computed once is kept, for several runs to share; in the run's folder unless given."""
    any_encoder: bool = False

    def __post_init__(self) -> None:
        if self.react.gates_only and self.start_from is None:
            raise UsageError("--gates-only needs --start-from: gates over random blocks learn nothing of use")
        make_absolute(self, "subset", "out", "start_from", "cache")

    def settle(self) -> bool:
        """Before any worker starts: whether there is anything left to do.

        Raises:
            SourceError: there is no such subset.
            ConfigMismatchError: the folder holds another run.
        """
        torch.set_num_threads(available_threads())  # faiss, in this process, may have set another number
        run, subset = Store(self.out), open_subset(self.subset)
        refuse_begun_otherwise(run, self._asked(subset))
        return not is_finished(run)

    def work(self, report: Report) -> None:
        """Train, as one of the workers of torch.distributed, or alone.

        Raises:
            RequestError: model, subset and settings do not go together.
            MemoryBuilderError: see ``trainer.loop.loop.train``.
        """
        share_of(self.loop.batch_size, world())  # refused here, not after hours of reading
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
        order_of(self.loop, len(pairs))
        if world().is_first:
            remember_model(self.encoder)
            settle_record(run, self._asked(subset) | {"kind": KIND, "fingerprint": encoder.fingerprint})
            wait_for_all()
        learner = self.learner(encoder)
        if self.start_from is not None:  # a run that goes on began there: its start may be another by now
            source = self.start_from if last_state(run) is None else self.out
            start_from(source, learner, encoder.fingerprint)
        frozen = frozen_digest(encoder.model)
        prepared = Prepared(encoder=encoder, learner=learner, pairs=pairs, cache=cache, data=self.data, loop=self.loop)
        train(
            learner,
            prepared.source(),
            self.loop,
            run,
            learning_rate=self.react.learning_rate,
            device=encoder.device,
            report=report,
        )
        if frozen_digest(encoder.model) != frozen:
            raise MemoryBuilderError(f"{run.root}: frozen tensors changed while training; this is a bug, report it")

    def learner(self, encoder: Encoder) -> ReactLearner:
        """The encoder's model with what learns in it, the same for every worker."""
        if self.loop.precision == "fp64":
            encoder.model.double()
        torch.manual_seed(self.loop.seed)
        return ReactLearner(encoder.model, self.react, self.encoder.model)

    def _asked(self, subset: Subset) -> dict[str, Any]:
        """The settings that decide what comes out."""
        asked = {"react": asdict(self.react), "data": decisive(self.data), "loop": decisive(self.loop)}
        encoder = {"model": self.encoder.model, "pretrained": self.encoder.pretrained}
        return asked | {"encoder": encoder, "subset_digest": subset.digest, "start_from": self.start_from}
