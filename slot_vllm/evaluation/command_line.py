"""What the command lines share: bad input in one line, exit codes, the options of a run's file.

Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from slot_vllm.evaluation import requirements
from slot_vllm.evaluation.errors import ConfigError, RunFailed
from slot_vllm.evaluation.interruption import EXIT_INTERRUPTED, Interruption, end_process

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2


class Parser(argparse.ArgumentParser):
    """Raises ConfigError where argparse would exit. examples: commands that its help ends with."""

    def __init__(self, *, examples: Sequence[str] = (), **kwargs: Any) -> None:
        epilog = "\n  ".join(("examples:", *examples)) if examples else None
        as_written = argparse.RawDescriptionHelpFormatter
        super().__init__(formatter_class=as_written, epilog=epilog, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (--help shows what is allowed)")


def add_config(parser: argparse.ArgumentParser) -> None:
    """Adds ``--config FILE`` and ``--set KEY=VALUE ...``."""
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="a run (YAML)")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="lays values over the file's: generation.temperature=0 arms.slot.lr=0.2",
    )


def exit_code(run: Callable[[], None]) -> int:
    """Runs; tells what went wrong on standard error and returns the exit code."""
    interruption = Interruption()
    try:
        with interruption:
            run()
    except BaseException as error:
        if interruption.happened:
            print("interrupted", file=sys.stderr)
            return EXIT_INTERRUPTED
        if (
            isinstance(error, ModuleNotFoundError)
            and str(error.name).partition(".")[0] != "slot_vllm"
        ):
            # Commands work without the extra `eval` until they need it.
            said = requirements.missing(error)
        elif isinstance(error, ConfigError | RunFailed):
            said = str(error)
        else:
            raise
        print(f"error: {said}", file=sys.stderr)
        return EXIT_BAD_INPUT if isinstance(error, ConfigError) else EXIT_FAILED
    return 0


def leave(code: int) -> NoReturn:
    """Ends the process with a command's exit code."""
    if code == EXIT_INTERRUPTED:
        sys.stdout.flush()
        sys.stderr.flush()
        end_process()
    sys.exit(code)
