"""Which instructions of IFEval each answer of a stored run follows, kind by kind.

    python scripts/score_instructions.py RUN [--data FILE]

lighteval's own checkers score the stored answers again; RUN/instructions.json then says, without a
text of the benchmark: ``kinds``, by problem its instructions' kinds; ``arms``, by arm and problem
two texts with a 1 for each instruction that is followed and a 0 for each that is not, strictly and
loosely; ``quotes``, by arm the problems whose answers repeat eight words of their prompt in a row,
which are the benchmark's text. FILE: where the run's data are now. Stops if a problem's score is
not the stored one.
"""

import argparse
import json
import re
from pathlib import Path

from tables.instructions import INSTRUCTIONS, RULES

from slot_vllm.evaluation import stored_tasks, tasks
from slot_vllm.evaluation.directory import RESULTS, read_results
from slot_vllm.evaluation.run_settings import changed
from slot_vllm.evaluation.samples import SAMPLES, SampleFile, write_whole
from slot_vllm.evaluation.scoring import score_stored

QUOTED_WORDS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path)
    options = parser.parse_args()
    stored = read_results(options.run / RESULTS)
    config = stored_tasks.configuration(stored, options.run / RESULTS)
    if [task.name for task in config.tasks] != ["ifeval"]:
        raise SystemExit(f"{options.run}: its task is not ifeval alone; allowed: a run of ifeval")
    if options.data is not None:
        config = changed(config, tasks=[changed(config.tasks[0], data=options.data)])
    (task,) = tasks.load(config)
    samples = SampleFile(options.run / SAMPLES).read()
    kinds: dict[str, list[str]] = {}
    arms: dict[str, dict[str, list[str]]] = {}
    quotes: dict[str, list[str]] = {}
    asked = stored_tasks.documents([task], samples, options.run)
    for sample, doc in zip(samples, asked, strict=True):
        kinds[sample.id] = list((doc.specific or {})["instructions_id_list"])
        scores = score_stored(task, doc, [sample])
        for rule in RULES:
            name = f"prompt_level_{rule}_acc"
            if scores.get(name) != sample.scores[name]:
                raise SystemExit(
                    f"{options.run}: {sample.arm}, problem {sample.id}: {name} is "
                    f"{scores.get(name)} today and was {sample.scores[name]}; rescore says more"
                )
        followed = [scores[f"inst_level_{rule}_acc"] for rule in RULES]
        arms.setdefault(sample.arm, {})[sample.id] = ["".join("01"[i] for i in f) for f in followed]
        repeats = quotes.setdefault(sample.arm, [])
        if _quotes(sample.completion, doc.query):
            repeats.append(sample.id)
    found = {"kinds": kinds, "arms": arms, "quotes": quotes}
    content = json.dumps(found, separators=(",", ":"))
    write_whole(options.run / INSTRUCTIONS, content + "\n")


def _quotes(answer: str, prompt: str) -> bool:
    words = re.findall(r"\w+", prompt.lower())
    said = " ".join(["", *re.findall(r"\w+", answer.lower()), ""])
    runs = (words[i : i + QUOTED_WORDS] for i in range(max(1, len(words) - QUOTED_WORDS + 1)))
    return any(f" {' '.join(run)} " in said for run in runs)


if __name__ == "__main__":
    main()
