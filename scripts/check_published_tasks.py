"""lighteval 0.8.1's own code beside ours: the same prompts, the same scores.

``python scripts/check_published_tasks.py [--output logs/reference/published_tasks.log]`` makes an
environment with lighteval 0.8.1 (its other packages are the current environment's), asks it for the
prompts and scores of AIME 2024, MATH-500 (../shared/benchmarks) and made-up GPQA questions, and
compares. The log has versions and counts only. ``--record FILE`` writes the hashes that the tests
compare with.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lighteval.models.model_output import ModelResponse
from lighteval.tasks.prompt_manager import PromptManager
from lighteval.tasks.requests import Doc
from transformers import AutoTokenizer

from slot_vllm.evaluation import tasks
from slot_vllm.evaluation.benchmarks.extractive_match import patterns
from slot_vllm.evaluation.benchmarks.published import SETTINGS
from slot_vllm.evaluation.config import RunConfig
from slot_vllm.evaluation.scoring import score

ROOT = Path(__file__).resolve().parents[1]
TOKENIZER = ROOT / "models" / "demo"
PUBLISHED = "0.8.1"
# Besides lighteval: what reads and compares the answers.
PACKAGES = ("lighteval", "math-verify", "latex2sympy2-extended", "sympy")
TASKS = ("aime24", "math_500", "gpqa:diamond")
# Real completions beside their own golds, which are numbers as AIME's.
GSM8K = "aime24 with GSM8K's golds"
# Of MATH-500 every third item is scored, which keeps the check to minutes.
EVERY = {"aime24": 1, "math_500": 3, "gpqa:diamond": 1}

NUMBER_FORMS = (
    "Therefore, the final answer is: $\\boxed{{{0}}}$. I hope it is correct",
    "$\\boxed{{{0}}}$",
    "\\boxed{{{0}}}",
    "${0}$",
    "\\[ x = {0} \\]",
    "ANSWER: {0}",
    "The answer is **{0}**.",
    "answer : {0}",
    "<think>Or is it $12345$?</think>\n\nSo $x = {0}$.",
    "{0}",
)
LETTER_FORMS = (
    "Answer: {0}",
    "answer : {0}",
    "Answer: ({0})",
    "**Answer: {0}**",
    "The final answer is {0}. I hope it is correct",
    "{0}",
    "So.\n{0}) is right",
    "So.\n{0}. It is right",
    "<think>A or B?</think>The correct option is {0}.",
    "A is wrong, so the answer must be {0}",
)

Answer = tuple[str, int, str]  # task, item, text
Rows = dict[str, list[dict[str, Any]]]


def questions(count: int = 60) -> list[dict[str, Any]]:
    """Made-up GPQA questions; some texts begin or end with white space, as GPQA's do."""
    return [
        {
            "Question": f"{' ' * (n % 3 == 0)}What is {n} plus {n}?" + "\n" * (n % 4 == 0),
            "Correct Answer": f"{2 * n}" + " " * (n % 5 == 0),
            **{f"Incorrect Answer {i}": f"{2 * n + i}" + "\n" * (n % 7 == i) for i in (1, 2, 3)},
        }
        for n in range(count)
    ]


def rows(shared: Path, completed: Sequence[dict[str, Any]]) -> Rows:
    """Each task's data. completed: completions and their own gold answers."""
    files = {"aime24": "aime24.jsonl", "math_500": "math500.jsonl"}
    return {
        **{task: _lines(shared / "benchmarks" / file) for task, file in files.items()},
        "gpqa:diamond": questions(),
        GSM8K: [{"problem": "1 + 1?", "answer": line["gold"]} for line in completed],
    }


def answers(
    golds: dict[str, list[str]], completions: Sequence[str]
) -> Iterator[tuple[str, Answer]]:
    """Kind and answer: golds in ten forms, golds of other items, nothing, real completions."""
    for task, of_task in golds.items():
        forms = LETTER_FORMS if task == "gpqa:diamond" else NUMBER_FORMS
        for item in range(0, len(of_task), EVERY[task]):
            gold = of_task[item]
            for form in forms:
                yield "gold answers", (task, item, form.format(gold))
            other = next(g for g in [*of_task[item:], *of_task] if g != gold)
            yield "wrong answers", (task, item, forms[0].format(other))
            yield "wrong answers", (task, item, f"{forms[0].format(gold)} {forms[0].format(other)}")
            if item % 10 == 0:
                yield "empty answers", (task, item, "" if item % 20 else " \n")
        for number, completion in enumerate(completions):
            yield "real completions", (task, number % len(of_task), completion)
    for number, completion in enumerate(completions):
        yield "real completions", (GSM8K, number, completion)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=ROOT / "logs" / "reference" / "published_tasks.log"
    )
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--record", type=Path, help="write the prompts' hashes and the patterns")
    arguments = parser.parse_args()
    completed = _lines(arguments.shared / "prompts" / "gsm8k_scores.jsonl")
    given = rows(arguments.shared, completed)
    with tempfile.TemporaryDirectory() as directory:
        own = {task: _ours(task, given[task], Path(directory)) for task in given}
        golds = {task: [_bare(doc.get_golds()[0]) for doc in _docs(own[task])] for task in TASKS}
        completions = [line["completion"] for line in completed]
        asked = list(answers(golds, completions))
        published = _published(Path(directory), given, [answer for _, answer in asked])
    theirs = published["versions"]
    if theirs["lighteval"] != PUBLISHED:
        sys.exit(f"lighteval {theirs['lighteval']} was asked; required: {PUBLISHED}")
    lines = ["the published release's own code (there) beside ours (here)"]
    lines += [f"{name}: {theirs[name]} there, {version(name)} here" for name in PACKAGES]
    failed = 0
    for task in TASKS:
        said, wrong = _compare_task(task, _docs(own[task]), published["tasks"][task])
        lines += [f"published:{task}: {line}" for line in said]
        failed += wrong
    said, wrong = _compare_scores(own, asked, published["scores"])
    lines += said
    failed += wrong
    lines.append(f"different: {failed}")
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if arguments.record:
        arguments.record.write_text(json.dumps(_record(published)) + "\n")
    arguments.output.write_text(text, encoding="utf-8")
    sys.exit(failed > 0)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _bare(gold: str) -> str:
    """What a boxed gold answer holds."""
    return gold.removeprefix("$\\boxed{").removesuffix("}$") if "boxed" in gold else gold


def _ours(task: str, of_task: list[dict[str, Any]], directory: Path) -> tasks.EvaluationTask:
    path = directory / f"{task.replace(':', '_')}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in of_task), encoding="utf-8")
    values = {
        "name": "check",
        "model": "m",
        "tasks": [{"name": f"published:{task.split(' ')[0]}", "data": str(path)}],
        "arms": [{"name": "baseline", "steps": 0}],
    }
    [loaded] = tasks.load(RunConfig.model_validate(values))
    return loaded


def _docs(task: tasks.EvaluationTask) -> list[Doc]:
    return sorted(task.docs, key=lambda doc: int(doc.id))


def _published(directory: Path, given: Rows, asked: list[Answer]) -> dict[str, Any]:
    """What the published release says, in an environment of its own."""
    environment, source, target = (directory / name for name in ("env", "in.json", "out.json"))
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, f"lighteval=={PUBLISHED}"], check=True)
    [site] = environment.glob("lib/*/site-packages")
    # Behind its own packages: everything but lighteval is shared.
    (site / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    content = {
        "tokenizer": str(TOKENIZER),
        "packages": PACKAGES,
        "tasks": given,
        "answers": asked,
    }
    source.write_text(json.dumps(content), encoding="utf-8")
    script = ROOT / "scripts" / "lighteval_published.py"
    subprocess.run([str(python), str(script), str(source), str(target)], check=True, cwd=directory)
    return dict(json.loads(target.read_text(encoding="utf-8")))


def _compare_task(task: str, own: list[Doc], published: dict[str, Any]) -> tuple[list[str], int]:
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    pairs: dict[str, tuple[list[Any], list[Any]]] = {
        "gold answers": ([doc.get_golds() for doc in own], published["golds"])
    }
    for kind in ("plain", "chat"):
        manager = PromptManager(kind == "chat", tokenizer, None)
        pairs[f"{kind} prompts"] = ([manager.prepare_prompt(doc) for doc in own], published[kind])
    for side in ("gold", "pred"):
        pairs[f"patterns ({side})"] = (_patterns(task, side, own[0]), published["patterns"][side])
    lines, different = [], 0
    for kind, (ours, theirs) in pairs.items():
        equal = sum(a == b for a, b in zip(ours, theirs, strict=True))
        lines.append(f"{equal} of {len(theirs)} {kind} equal")
        different += len(theirs) - equal
    return lines, different


def _patterns(task: str, side: str, doc: Doc) -> list[list[Any]]:
    settings = SETTINGS[task]
    targets = getattr(settings, f"{side}_extraction_target")
    return [
        [pattern.pattern, pattern.flags, rank]
        for found, _ in patterns(settings, doc, targets)
        for pattern, rank in found
    ]


def _compare_scores(
    own: dict[str, tasks.EvaluationTask],
    asked: Sequence[tuple[str, Answer]],
    published: Sequence[dict[str, float]],
) -> tuple[list[str], int]:
    docs = {name: _docs(task) for name, task in own.items()}
    counts: Counter[tuple[str, str]] = Counter()
    equal: Counter[tuple[str, str]] = Counter()
    right: Counter[tuple[str, str]] = Counter()
    for (kind, (name, item, text)), theirs in zip(asked, published, strict=True):
        ours = score(own[name], docs[name][item], ModelResponse(input="", text=[text]))
        key = (name, kind)
        counts[key] += 1
        equal[key] += ours == theirs
        right[key] += int(theirs["extractive_match"])
        if ours != theirs:
            print(f"{name}, item {item}, {kind}: {ours}, published {theirs}", file=sys.stderr)
    lines = [
        f"published:{name}: {equal[name, kind]} of {count} scores equal: {kind} "
        f"({right[name, kind]} of them 1)"
        for (name, kind), count in counts.items()
    ]
    total, same = sum(counts.values()), sum(equal.values())
    return [*lines, f"all: {same} of {total} scores equal"], total - same


def _record(published: dict[str, Any]) -> dict[str, Any]:
    """Hashes, in place of the benchmarks' texts, and 0.8.1's patterns."""

    def digest(prompt: str) -> str:
        return hashlib.sha256(prompt.encode()).hexdigest()[:12]

    return {
        task: {
            "problems": [
                digest(f"{prompt}\0{gold}")
                for prompt, [gold] in zip(of_task["plain"], of_task["golds"], strict=True)
            ],
            "patterns": digest(json.dumps(of_task["patterns"])),
        }
        for task, of_task in published["tasks"].items()
        if task in TASKS
    }


if __name__ == "__main__":
    main()
