"""``python -m slot_vllm.evaluation --config FILE``, also ``slot-vllm eval``: a run.

Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from slot_vllm.evaluation import config as configuration
from slot_vllm.evaluation.command_line import Parser, add_config, exit_code, leave
from slot_vllm.evaluation.errors import RunFailed, of_file


def main(arguments: Sequence[str]) -> int:
    """Runs an evaluation; returns the exit code."""
    parser = Parser(prog="slot_vllm.evaluation", description=__doc__, allow_abbrev=False)
    add_options(parser)
    return exit_code(lambda: evaluate(**vars(parser.parse_args(arguments))))


def evaluate(
    config: Path, set: Sequence[str], output_dir: Path | None, resume: bool, overwrite: bool
) -> None:
    """Runs as ``add_options`` says. Raises ConfigError and RunFailed."""
    asked = configuration.load(config, set)
    with of_file(config):
        configuration.check_paths(asked)
        # Here, not above: importing lighteval takes seconds, and bad input needs none of it.
        from slot_vllm.evaluation.console import run_log
        from slot_vllm.evaluation.directory import RunDirectory
        from slot_vllm.evaluation.phases import Phases

        directory = RunDirectory(output_dir or Path("logs") / asked.name)
        directory.check(asked, resume, overwrite)
        with run_log(directory.log):
            with Phases("importing lighteval and vLLM"):
                from slot_vllm.evaluation.run import run
                from slot_vllm.evaluation.scoring import unscored
                from slot_vllm.evaluation.table import show
            results = run(asked, directory, resume)
        show(results)
        if results.unscored[0]:
            raise RunFailed(
                f"{unscored(*results.unscored)}. All answers are kept: `slot-vllm rescore "
                f"{directory.path}`, or --resume, scores them once the scorer can"
            )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of a run."""
    add_config(parser)
    parser.add_argument(
        "--output-dir", type=Path, metavar="DIR", help="default: logs/ and the run's name"
    )
    earlier = parser.add_mutually_exclusive_group()
    earlier.add_argument(
        "--resume", action="store_true", help="continue a run; it may get more arms and problems"
    )
    earlier.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the run that the directory holds, once this one is done",
    )


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
