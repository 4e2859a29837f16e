"""The command: ``memory-builder SUBCOMMAND``.

Results go to standard output, progress and errors to standard error. Exit code 0: success, 1: work failed, 2: wrong
usage, 130: Ctrl-C, 143: SIGTERM; after the last two the same command resumes.
"""

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from memory_builder.base.interrupts import TERMINATED, exit_code, sigterm_interrupts
from memory_builder.commands.help import EXAMPLES, SUMMARIES, overview, with_readable_flags
from memory_builder.commands.logs import logging_to_stderr
from memory_builder.errors import MemoryBuilderError

FAILED, WRONG_USAGE = 1, 2
CUT = 141
"""As the shell says of a program whose reader has gone."""
MODULES = {"import": "import_", "report": "evaluate"}
"""Commands whose module has another name."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments, submitted = _split_submitted(list(sys.argv[1:] if argv is None else argv))
    debug = "--debug" in arguments
    name, *rest = [argument for argument in arguments if argument != "--debug"] or [""]
    if name in ("-h", "--help", "--version") or name not in SUMMARIES:
        return _about(name)
    try:
        command = _parsed(name, rest)
        if name == "submit":
            command = replace(command, command=submitted)
        with sigterm_interrupts(), logging_to_stderr():
            code: int = command.run()
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _interrupted(exit_code())
    except SystemExit as stop:
        if stop.code != signal.SIGTERM:  # what Ray makes of it while it starts
            raise
        return _interrupted(TERMINATED)
    except BrokenPipeError:
        # No one reads, nor at exit, when what is left would be written.
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        return CUT
    except Exception as error:
        if debug:
            raise
        return _failed(error)
    return code


def _about(name: str) -> int:
    """Help, version, or which commands there are."""
    if name in ("-h", "--help"):
        print(overview())
    elif name == "--version":
        from memory_builder import __version__

        print(f"memory-builder {__version__}")
    else:
        close = get_close_matches(name, SUMMARIES, n=1)
        meant = f"did you mean {close[0]}? " if close else ""
        problem = f"no command {name}: " if name else "no command: "
        print(f"error: {problem}{meant}memory-builder --help lists the commands", file=sys.stderr)
        return WRONG_USAGE
    return 0


def command_class(name: str) -> Any:
    """The dataclass of a command, whose fields are its flags."""
    return getattr(import_module(f"memory_builder.commands.{MODULES.get(name, name)}"), name.capitalize())


def _parsed(name: str, arguments: list[str]) -> Any:
    """The command with its flags; what adds to an existing memory has that memory's settings for defaults.

    Only the module of this command is imported: others may need seconds for libraries of their own.
    """
    import tyro

    kind = command_class(name)
    default = None
    if name in ("embed", "import"):
        from memory_builder.commands.defaults import memory_defaults

        default = memory_defaults(kind, arguments)
    return tyro.cli(
        with_readable_flags(kind),
        prog=f"memory-builder {name}",
        description=f"{(kind.__doc__ or '').strip()}\n\nExample: memory-builder {EXAMPLES[name]}",
        args=arguments,
        default=default,
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def _split_submitted(arguments: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """What follows -- belongs to the submitted command."""
    at = arguments.index("--") if "--" in arguments else 0
    if "submit" not in arguments[:at]:
        return arguments, ()
    return arguments[:at], tuple(arguments[at + 1 :])


def _interrupted(code: int) -> int:
    print("interrupted; the same command resumes", file=sys.stderr)
    return code


def _failed(error: Exception) -> int:
    is_known = isinstance(error, MemoryBuilderError)
    message = str(error) if is_known else f"{type(error).__name__}: {error} (--debug shows the traceback)"
    print(f"error: {message}", file=sys.stderr)
    return error.exit_code if isinstance(error, MemoryBuilderError) else FAILED


if __name__ == "__main__":
    sys.exit(main())
