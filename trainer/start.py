"""Begin with parameters that were trained before: another run's, or a checkpoint released by REACT's authors."""

from pathlib import Path

from memory_builder.errors import EncoderError
from memory_builder.progress import say
from memory_builder.storage import Store
from trainer.backbone import Parameters
from trainer.checkpoint import TRAINABLE, assign, last_state, read_tensors
from trainer.record import read_run
from trainer.released import read_released


def start_from(source: str, parameters: Parameters, fingerprint: str) -> None:
    """Set the parameters that are found in ``source``, and say which are not.

    Raises:
        EncoderError: they were trained in another frozen model.
        UsageError: it is neither a run nor a checkpoint.
        ConfigMismatchError: shapes differ.
    """
    if Path(source).is_file():
        found = read_released(source)
    else:
        run = Store(source)
        record = read_run(run, "react")
        if record["fingerprint"] != fingerprint:
            raise EncoderError(
                f"{run.root} was trained in {record['encoder']['model']} ({record['fingerprint'][:12]}), and this is "
                f"another model ({fingerprint[:12]})"
            )
        state = last_state(run)
        found = {} if state is None else read_tensors(run, state, TRAINABLE)
    here = {name: parameter for name, parameter in parameters.items() if name in found}
    assign(here, {name: found[name] for name in here}, source)
    missing = [name for name in parameters if name not in found]
    if missing:
        say(f"{source} sets {len(here)} of {len(parameters)} parameters; {missing[0]} and others start as they were")
