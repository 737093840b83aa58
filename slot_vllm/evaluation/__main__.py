"""``python -m slot_vllm.evaluation --config FILE``: the evaluation's command line.

Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from slot_vllm.evaluation import config as configuration
from slot_vllm.evaluation.config import ConfigError, RunConfig, RunFailed

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (--help shows what is allowed)")


def main(arguments: Sequence[str]) -> int:
    """Runs an evaluation; returns the exit code."""
    try:
        options = _parse(arguments)
        config = configuration.load(options.config, options.set)
        try:
            configuration.check_paths(config)
            _run(config, options)
        except ConfigError as error:
            raise ConfigError(f"{options.config}: {error}") from error
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except RunFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(prog="slot_vllm.evaluation", description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="a run (YAML)")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="lays values over the file's: generation.temperature=0 arms.slot.lr=0.2",
    )
    parser.add_argument(
        "--output-dir", type=Path, metavar="DIR", help="default: logs/ and the run's name"
    )
    earlier = parser.add_mutually_exclusive_group()
    earlier.add_argument("--resume", action="store_true", help="continue an interrupted run")
    earlier.add_argument(
        "--overwrite", action="store_true", help="replace whatever run the directory holds"
    )
    return parser.parse_args(arguments)


def _run(config: RunConfig, options: argparse.Namespace) -> None:
    # Here, not above: importing lighteval takes seconds, and bad input needs none of it.
    from slot_vllm.evaluation.console import RunLog
    from slot_vllm.evaluation.directory import RunDirectory
    from slot_vllm.evaluation.results import show
    from slot_vllm.evaluation.run import run

    directory = RunDirectory(options.output_dir or Path("logs") / config.name)
    directory.check(config, options.resume, options.overwrite)
    results = run(config, directory, options.resume, RunLog())
    show(results)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
