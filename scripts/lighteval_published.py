"""What lighteval 0.8.1's own code says: prompts, patterns and scores. Runs in an environment of its
own, for scripts/check_published_tasks.py: ``python lighteval_published.py IN.json OUT.json``."""

import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SEED = 1234  # of the pipeline of lighteval, before it makes a task's documents


def main(source: Path, target: Path) -> None:
    """IN: tokenizer; packages; tasks: rows by name (what follows a space there says what they are);
    answers: task, item, text. OUT: versions of the packages; by task its prompts (plain and as
    chat), golds, metrics and patterns; scores in the order of the answers."""
    from importlib.metadata import version

    from lighteval.metrics import apply_generative_metric
    from lighteval.models.model_output import GenerativeResponse
    from transformers import AutoTokenizer

    given = json.loads(source.read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(given["tokenizer"])
    tasks = {name: _task(name.split(" ")[0], rows) for name, rows in given["tasks"].items()}
    versions = {name: version(name) for name in given["packages"]}
    found: dict[str, Any] = {"versions": versions, "tasks": {}, "scores": []}
    docs = {}
    for name, task in tasks.items():
        random.seed(SEED)
        docs[name] = task.eval_docs()
        found["tasks"][name] = {
            "plain": [_prompt(task, doc, tokenizer, chat=False) for doc in docs[name]],
            "chat": [_prompt(task, doc, tokenizer, chat=True) for doc in docs[name]],
            "golds": [doc.get_golds() for doc in docs[name]],
            "metrics": [metric.metric_name for metric in task.metrics],
            "patterns": _patterns(task.metrics[0], docs[name][0]),
        }
    for name, item, text in given["answers"]:
        doc = docs[name][item]
        doc.specific = None
        response = GenerativeResponse(result=[text])
        [scores] = apply_generative_metric([""], [[response]], [doc], tasks[name].metrics)
        found["scores"].append(scores)
    target.write_text(json.dumps(found), encoding="utf-8")


def _task(name: str, rows: list[dict[str, Any]]) -> Any:
    from lighteval.tasks import default_tasks
    from lighteval.tasks.lighteval_task import LightevalTask, LightevalTaskConfig

    [config] = [
        value
        for value in vars(default_tasks).values()
        if isinstance(value, LightevalTaskConfig) and value.name == name
    ]
    task = LightevalTask(name, config)
    [split] = task.evaluation_split
    task.dataset = {split: rows}
    return task


def _prompt(task: Any, doc: Any, tokenizer: Any, chat: bool) -> str:
    from lighteval.tasks.prompt_manager import PromptManager

    model = SimpleNamespace(tokenizer=tokenizer, tok_encode=tokenizer.encode, max_length=None)
    manager = PromptManager(task, model)
    made = manager.add_context_to_doc(doc, 0, 0, random.Random(0), use_chat_template=chat)
    return made.ctx


def _patterns(metric: Any, doc: Any) -> dict[str, list[list[Any]]]:
    """Of the gold answer and of the model's, as the metric compiles them: pattern, flags, rank."""
    from lighteval.metrics.utils.extractive_match_utils import get_extraction_regexes

    closed = dict(
        zip(
            metric.sample_level_fn.__code__.co_freevars,
            (cell.cell_contents for cell in metric.sample_level_fn.__closure__),
            strict=True,
        )
    )
    return {
        side: [
            [pattern.pattern, pattern.flags, rank]
            for patterns, _ in get_extraction_regexes(
                doc, closed[f"{side}_extraction_target"], closed["language"]
            )
            for pattern, rank in patterns
        ]
        for side in ("gold", "pred")
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
