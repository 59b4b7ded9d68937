"""`trl-mise`: train, evaluate, play and look at agents from a terminal.

`python -m trl_mise.cli` is the same, and what `accelerate launch -m trl_mise.cli train ...` starts. Every command is a
module of `trl_mise.commands` with a `main(argv) -> int`, and only the one that is asked for is imported.
"""

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from . import __version__
from .envs.base import EnvironmentFailure


class Command(NamedTuple):
    """Where a command is, and what it is good for."""

    module: str
    summary: str


COMMANDS = {
    "train": Command("train", "train an agent on an environment"),
    "eval": Command("eval", "play episodes with an agent and say how well it went"),
    "rollout": Command("rollout", "play episodes and print them, every step with its hindsight score"),
    "play": Command("play", "play an environment yourself"),
    "report": Command("report", "make one HTML file of a run: curves, calibration, health, episodes"),
    "envs": Command("envs", "list the environments, what is installed, and how to install the rest"),
    "check-env": Command("check_env", "check an environment of your own against the contract"),
    "env": Command("env", "print the versions of what is installed, for a bug report"),
}

USER_ERRORS = (EnvironmentFailure, ImportError, OSError, TypeError, ValueError)
"""What bad input raises; the message says what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv (`Sequence[str]`, *optional*): in place of the command line's.

    Returns:
        `int`: exit status: 0, 1 if it did not work, 2 for bad input, 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    is_debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if name in ("-h", "--help", "help"):
        print(_parser().format_help(), end="")
        return 0
    if name == "--version":
        print(f"trl-mise {__version__}")
        return 0
    if name not in COMMANDS:
        return _fail("", f"{name!r} is no command{_suggestion(name)}; run trl-mise --help", 2)
    sys.path.insert(0, os.getcwd())  # where an environment of one's own is looked for
    try:
        module = importlib.import_module(f"trl_mise.commands.{COMMANDS[name].module}")
        status: int = module.main(rest)
        return status
    except KeyboardInterrupt:
        return _fail(f" {name}", "interrupted", 130)
    except BrokenPipeError:
        # Whoever read the output has seen enough. Python would complain once more when it closes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if is_debug:
            raise
        if isinstance(error, USER_ERRORS):
            return _fail(f" {name}", _told(error), 2)
        return _fail(f" {name}", f"{type(error).__name__}: {_told(error)} (--debug shows where)", 1)


def _told(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _fail(command: str, message: str, status: int) -> int:
    print(f"trl-mise{command}: error: {message}", file=sys.stderr)
    return status


def _suggestion(name: str) -> str:
    close = difflib.get_close_matches(name, COMMANDS, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _parser() -> argparse.ArgumentParser:
    """For its help text only: a command reads its own arguments."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name.ljust(width)}  {command.summary}" for name, command in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="trl-mise",
        usage="trl-mise COMMAND [options]",
        description="Train LLM agents with TRL when the only reward comes at the end.",
        epilog=(
            f"commands:\n{commands}\n\n"
            "trl-mise COMMAND --help says more. Several processes: accelerate launch -m trl_mise.cli train ..."
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


if __name__ == "__main__":
    sys.exit(main())
