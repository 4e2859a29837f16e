"""The command: ``memory-builder SUBCOMMAND``.

Results go to standard output, progress and errors to standard error. Exit code 0: done, 1: work failed, 2: it cannot
be done as asked, 130: Ctrl-C, 143: SIGTERM; then the same command goes on where it stopped.
"""

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Union, get_args

import tyro
from tyro.conf import subcommand

from memory_builder.base.interrupts import TERMINATED, exit_code, sigterm_interrupts
from memory_builder.commands.append import Append
from memory_builder.commands.compact import Compact
from memory_builder.commands.defaults import memory_defaults
from memory_builder.commands.delete import Delete
from memory_builder.commands.demo import Demo
from memory_builder.commands.embed import Embed
from memory_builder.commands.evaluate import Evaluate, Report
from memory_builder.commands.export import Export
from memory_builder.commands.import_ import Import
from memory_builder.commands.index import Index
from memory_builder.commands.info import Info
from memory_builder.commands.logs import shown
from memory_builder.commands.merge import Merge
from memory_builder.commands.options import FAILED
from memory_builder.commands.retrieve import Retrieve
from memory_builder.commands.search import Search
from memory_builder.commands.serve import Serve
from memory_builder.commands.submit import Submit
from memory_builder.commands.train import Train
from memory_builder.commands.verify import Verify
from memory_builder.errors import MemoryBuilderError

CUT = 141
"""As the shell says of a program whose reader has gone."""

Command = (
    Annotated[Demo, subcommand("demo")]
    | Annotated[Embed, subcommand("embed")]
    | Annotated[Import, subcommand("import")]
    | Annotated[Index, subcommand("index")]
    | Annotated[Search, subcommand("search")]
    | Annotated[Append, subcommand("append")]
    | Annotated[Delete, subcommand("delete")]
    | Annotated[Compact, subcommand("compact")]
    | Annotated[Merge, subcommand("merge")]
    | Annotated[Info, subcommand("info")]
    | Annotated[Verify, subcommand("verify")]
    | Annotated[Export, subcommand("export")]
    | Annotated[Retrieve, subcommand("retrieve")]
    | Annotated[Train, subcommand("train")]
    | Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Report, subcommand("report")]
    | Annotated[Serve, subcommand("serve")]
    | Annotated[Submit, subcommand("submit")]
)

KINDS = get_args(Command)

DESCRIPTION = "Build a searchable memory of image-text pairs and ask it. --debug shows tracebacks of errors."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    arguments, submitted = _split_submitted(arguments)
    debug = "--debug" in arguments
    try:
        command: Any = tyro.cli(
            _with_defaults(arguments),
            prog="memory-builder",
            description=DESCRIPTION,
            args=[argument for argument in arguments if argument != "--debug"],
        )
        if isinstance(command, Submit):
            command = replace(command, command=submitted)
        with sigterm_interrupts(), shown():
            code: int = command.run()
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _tell_interrupted(exit_code())
    except SystemExit as stop:
        if stop.code != signal.SIGTERM:  # what Ray makes of it while it starts
            raise
        return _tell_interrupted(TERMINATED)
    except BrokenPipeError:
        # There is no one to tell, nor at exit, when what is left would be written.
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        return CUT
    except Exception as error:
        if debug:
            raise
        return _tell(error)
    return code


def _with_defaults(arguments: list[str]) -> Any:
    """The commands; what adds to a memory that exists has the settings of that for its defaults."""
    default = memory_defaults(arguments)
    if default is None:
        return Command
    kind, name = type(default), arguments[0]
    members = [Annotated[kind, subcommand(name, default=default)] if get_args(m)[0] is kind else m for m in KINDS]
    return Union[tuple(members)]  # noqa: UP007 - of a list


def _split_submitted(arguments: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """What stands behind -- belongs to the submitted command."""
    at = arguments.index("--") if "--" in arguments else 0
    if "submit" not in arguments[:at]:
        return arguments, ()
    return arguments[:at], tuple(arguments[at + 1 :])


def _tell_interrupted(code: int) -> int:
    print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
    return code


def _tell(error: Exception) -> int:
    known = isinstance(error, MemoryBuilderError)
    what = str(error) if known else f"{type(error).__name__}: {error} (--debug shows where)"
    print(f"error: {what}", file=sys.stderr)
    return error.exit_code if isinstance(error, MemoryBuilderError) else FAILED


if __name__ == "__main__":
    sys.exit(main())
