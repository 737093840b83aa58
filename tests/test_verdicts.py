"""What README and study say in words of the numbers that the logs hold.

Each test has the sentence, which must stand in the page, and what it rests on, counted again from
the log: with other numbers, or another sentence, it fails.
"""

import json
import re
import sys
from collections.abc import Iterator

import pytest

from slot_vllm.evaluation.directory import RESULTS, read_inspections, read_results
from slot_vllm.evaluation.published_table import PROBLEMS
from slot_vllm.evaluation.record import BASELINE, CUT_OFF, LOOPS, Metric, Result, Sample
from slot_vllm.evaluation.samples import SAMPLES, SampleFile
from slot_vllm.evaluation.statistics import ALPHA
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
from tables.scores import PAPER
from tables.texts import TOKENS as SHOWN
from tables.texts import is_repetition

REFERENCE = ROOT / "logs" / "reference"
STUDY, README = ("docs/study.md", "README.md")
STRICT, LOOSE = "prompt_level_strict_acc", "prompt_level_loose_acc"
# Of the paper, from no step to five.
PAPERS_GAIN = PAPER[5] - PAPER[0]


def stands(page: str, sentence: str) -> None:
    assert sentence in " ".join((ROOT / page).read_text(encoding="utf-8").split())


def arms(run: str) -> dict[str, Result]:
    return {row.name: row for row in read_results(REFERENCE / run / RESULTS).arms}


def with_slot(run: str) -> Iterator[Result]:
    return (row for name, row in arms(run).items() if name != BASELINE)


def told(metric: Metric) -> int:
    """1: higher than the baseline, -1: lower, 0: no difference can be told."""
    assert metric.p_value_holm is not None and metric.difference is not None
    if metric.p_value_holm > ALPHA:
        return 0
    return 1 if metric.difference > 0 else -1


def bounds(metric: Metric) -> tuple[float, float]:
    assert metric.difference_interval is not None
    return metric.difference_interval


def test_a_figure_that_is_missing_is_no_verdict() -> None:
    for metric in (Metric(value=0.5), Metric(value=0.5, p_value_holm=0.01)):
        with pytest.raises(AssertionError):
            told(metric)
    with pytest.raises(AssertionError):
        bounds(Metric(value=0.5))


def test_the_form_on_gsm8k_rises() -> None:
    stands(STUDY, "**The format effect replicates, on a model of another size and kind;")
    stands(
        STUDY, "The form is kept more often with every number of steps that was run, and with it"
    )
    stands(STUDY, "with it rise right answers in the asked form")
    stands(README, "keeps the asked form more often with one, three and five steps of lr 0.1")
    stands(README, "with it, more answers are right in that form.")
    assert {1, 3, 5} <= {row.steps for row in with_slot("study/gsm8k")}
    for row in with_slot("study/gsm8k"):
        assert told(row.metrics["format"]) == told(row.metrics["answer_and_format"]) == 1, row.name


def test_no_change_of_right_numbers_is_seen_on_gsm8k() -> None:
    stands(STUDY, "kind; a change of right numbers does not.**")
    stands(STUDY, "A loss of right numbers as large as the interval's lower end is not excluded.")
    stands(README, "a change of how many are right was not found.")
    stands(README, "Five steps may still cost some right answers, as the interval says")
    for row in with_slot("study/gsm8k"):
        low, high = bounds(row.metrics["answer"])
        assert told(row.metrics["answer"]) == 0 and low < 0 < high, row.name


def test_the_papers_gain_would_have_been_seen() -> None:
    first, last = (f"{answers:.3f}".removeprefix("0") for answers in (PAPER[0], PAPER[5]))
    stands(STUDY, f"The paper's gain in answers (from {first} to {last}, ")
    stands(STUDY, "is not seen here: such a difference would have been, the intervals say.")
    for row in with_slot("study/gsm8k"):
        assert bounds(row.metrics["answer"])[1] < PAPERS_GAIN, row.name


def test_what_delta_raises_beside_the_article() -> None:
    stands(STUDY, "So the raised words agree from three steps on")
    stands(STUDY, "digits are not among what is lowered most, and one step raises them.")
    found = {one.arm: one for one in read_inspections(REFERENCE / "study/gsm8k_shifts")}

    def tokens(arm: str, side: str) -> list[str]:
        # As the table shows them: in quotes, and a blank before a word is part of it.
        shown = getattr(found[arm], side)[:SHOWN]
        return [shift.token[1:-1].strip() for shift in shown]

    for arm in ("steps3", "steps5"):
        assert {"reasoning", "think", "user"} <= set(tokens(arm, "raised"))
        assert not any(re.fullmatch(r"\d+", token) for token in tokens(arm, "lowered"))
    assert {"1", "2"} <= set(tokens("steps1", "raised"))
    assert sum("tag" in token.lower() for token in tokens("steps5", "lowered")) > 5


def test_loops_on_ifeval() -> None:
    stands(STUDY, "Nearly half of the answers go round in circles")
    stands(
        STUDY,
        "Five steps of lr 0.1 make it worse; one step of lr 0.1, and five of lr 0.01, make it "
        "better, and accuracy by prompt stays within some points.",
    )
    found = arms("study/ifeval_135m")
    assert 0.4 < (found[BASELINE].metrics[LOOPS].value or 0) < 0.5
    stands(STUDY, "Smaller ones change nothing that can be told.")
    looping = {"steps5-lr0.1": 1, "steps1-lr0.1": -1, "steps5-lr0.01": -1}
    assert len(found) == 7
    for row in with_slot("study/ifeval_135m"):
        assert told(row.metrics[LOOPS]) == looping.get(row.name, 0), row.name
    for row in with_slot("study/ifeval_135m"):
        for metric in (STRICT, LOOSE):
            assert told(row.metrics[metric]) == 0
            assert -0.05 < bounds(row.metrics[metric])[0] < bounds(row.metrics[metric])[1] < 0.05


def test_ifeval_on_the_larger_model() -> None:
    found = {row.name: row for row in with_slot("study/ifeval_1.5b")}
    assert [(row.steps, row.lr) for row in found.values()] == [(5, 0.1), (5, 0.01), (1, 0.1)]
    stands(
        STUDY,
        "**No setting raises adherence by as much as these prompts can tell, and with lr 0.1 more",
    )
    stands(README, "no setting that was run raises adherence by as much as can be told")
    for run in ("study/ifeval_135m", "study/ifeval_1.5b", "search/ifeval_135m"):
        for row in with_slot(run):
            assert told(row.metrics[STRICT]) < 1, (run, row.name)
            assert LOOSE not in row.metrics or told(row.metrics[LOOSE]) < 1, (run, row.name)
    stands(README, "on the larger model those of lr 0.1 make more answers loop.")
    stands(STUDY, "on IFEval [it makes more answers of the 1.5B model loop](#ifeval), too.")
    loops = {name: told(row.metrics[LOOPS]) for name, row in found.items()}
    assert loops == {"steps5-lr0.1": 1, "steps5-lr0.01": 0, "steps1-lr0.1": 1}
    stands(STUDY, "With each of the three settings more answers run into the limit.")
    assert all(told(row.metrics[CUT_OFF]) == 1 for row in found.values())


def test_the_first_look_at_loops() -> None:
    found = arms("search/ifeval_135m")
    loops = {row.name: row.metrics[LOOPS] for row in with_slot("search/ifeval_135m")}
    gains = {name: -(metric.difference or 0) for name, metric in loops.items()}
    assert 0.45 < (found[BASELINE].metrics[LOOPS].value or 0) < 0.6
    stands(STUDY, "One step of lr 0.1 lowers loops most, and half its rate nearly as much.")
    assert max(gains, key=lambda name: gains[name]) == "steps1"
    assert gains["steps1-lr0.05"] > 0.9 * gains["steps1"]
    assert told(loops["steps1"]) == told(loops["steps1-lr0.05"]) == -1
    stands(STUDY, "Fading it out leaves most of that; learning from the user's turn alone leaves")
    for name in ("steps1-window64", "steps1-half-life64"):
        assert told(loops[name]) == -1 and gains[name] > 0.75 * gains["steps1"]
    assert told(loops["steps1-user"]) == 0 and gains["steps1-user"] <= 0
    stands(STUDY, "Adherence does not change by as much as these prompts can tell.")
    assert all(told(row.metrics[STRICT]) == 0 for row in with_slot("search/ifeval_135m"))


def test_worked_examples_leave_nothing_to_do() -> None:
    run, without = "search/gsm8k_examples", samples("study/gsm8k")
    examples = samples(run)
    problems = set(examples[BASELINE])

    def count(found: dict[str, Sample], metric: str) -> int:
        return sum(found[name].scores[metric] == 1 for name in problems)

    stands(STUDY, "**The examples alone give what SLOT was to give, and leave it nothing to do.**")
    stands(
        STUDY,
        "Without SLOT 198 of these 200 answers keep the form with the examples, and 56 without "
        "them; five steps of lr 0.1 without examples reach 96.",
    )
    assert len(problems) == 200
    counts = [examples[BASELINE], without[BASELINE], without["steps5"]]
    assert [count(one, "format") for one in counts] == [198, 56, 96]
    stands(
        STUDY,
        "Right in the form are 101 with the examples alone, where five steps without them reach 56",
    )
    assert [count(one, "answer_and_format") for one in counts] == [101, 30, 56]
    stands(STUDY, "With the examples no setting changes form or right numbers by as much as 200")
    stands(STUDY, "But each of the six has fewer right numbers than no SLOT,")
    stands(README, "Three worked examples in the prompt give it nearly always, too,")
    stands(README, "six settings of SLOT beside them change nothing that can be told.")
    assert len(arms(run)) == 7
    for row in with_slot(run):
        for metric in ("format", "answer", "answer_and_format", CUT_OFF, LOOPS):
            assert told(row.metrics[metric]) == 0, (row.name, metric)
        assert (row.metrics["answer"].difference or 0) < 0
    stands(STUDY, "the interval of `steps5-assistant-window4`, which is not corrected, lies below")
    below = [row.name for row in with_slot(run) if bounds(row.metrics["answer"])[1] < 0]
    assert below == ["steps5-assistant-window4"]
    stands(STUDY, "alone have 93 right numbers each, fewer than the best of the others (99).")
    right = {name: count(found, "answer") for name, found in examples.items()}
    answers = {"steps5-assistant", "steps5-assistant-window4"}
    assert [right[name] for name in answers] == [93, 93]
    assert max(right[name] for name in right.keys() - answers - {BASELINE}) == 99


def test_the_claim_by_loops_fails() -> None:
    stands(STUDY, "**It fails, and the other way round:** on these prompts one step makes more")
    [one_step] = with_slot("claim/loops_gsm8k_135m")
    baseline = arms("claim/loops_gsm8k_135m")[BASELINE].metrics
    assert (one_step.steps, one_step.lr, one_step.samples) == (1, 0.1, 500)
    assert (baseline[LOOPS].value or 0) > 0.1
    assert told(one_step.metrics[LOOPS]) == 1
    stands(STUDY, "The model answers hardly any of these problems,")
    assert (baseline["answer"].value or 0) < 0.05
    stands(STUDY, "lowered them there by less than a third,")
    found = arms("study/ifeval_135m")
    small = found["steps5-lr0.01"].metrics[LOOPS]
    assert -1 / 3 < (small.difference or 0) / (found[BASELINE].metrics[LOOPS].value or 1) < 0


def test_the_claim_by_form_does_not_succeed() -> None:
    stands(STUDY, "**It does not succeed.** The first two conditions hold:")
    found = arms("claim/gsm8k")
    names = ("steps5-window4", "regex", "regex-steps5-window4")
    slot, regex, both = (found[name].metrics for name in names)
    assert set(found) == {BASELINE, *names} and found[BASELINE].samples == 500
    assert (found[names[0]].steps, found[names[0]].lr) == (5, 0.1)
    stands(STUDY, "the form is kept more often, by more than ten points, and right numbers do not")
    assert told(slot["format"]) == 1 and (slot["format"].difference or 0) > 0.1
    assert (slot["answer"].difference or -1) >= -0.015 and bounds(slot["answer"])[0] > -0.04
    stands(STUDY, "A regular expression gives the form nearly always, and with it more than twice")
    stands(README, "gives it nearly always and more right answers in it than SLOT")
    assert (regex["format"].value or 0) > 0.95
    assert (regex["answer_and_format"].value or 0) > 2 * (slot["answer_and_format"].value or 1)
    stands(STUDY, "SLOT added to it gives no more.")
    stands(README, "SLOT added to that gives no more.")
    assert (both["answer_and_format"].value or 1) <= (regex["answer_and_format"].value or 0)
    stands(STUDY, "333 of the 500 answers are the same with SLOT and without.")
    one, other = (completions("claim/gsm8k")[name] for name in names[1:])
    assert sum(one[problem] == other[problem] for problem in one) == 333
    stands(
        STUDY,
        "[six settings of a smaller model and three of this one](#ifeval) do not raise strict",
    )
    for run, settings in ("study/ifeval_135m", 6), ("study/ifeval_1.5b", 3):
        ifeval = [row.metrics[STRICT] for row in with_slot(run)]
        assert len(ifeval) == settings and all(told(metric) < 1 for metric in ifeval)


def test_where_the_form_is_lost() -> None:
    stands(STUDY, "(378 of 500, 392 without it)")
    stands(STUDY, "leave it open to the end (159, without SLOT 235)")
    found = completions("claim/gsm8k")
    assert [opened(found[name]) for name in ("steps5-window4", BASELINE)] == [378, 392]
    assert [left_open(found[name]) for name in ("steps5-window4", BASELINE)] == [159, 235]
    stands(STUDY, "(456, 427 and 389 of 500 with one, three and five steps, 392 without SLOT)")
    stands(STUDY, "fewer of the answers that open the tag leave it open.")
    found = completions("study/gsm8k")
    by_steps = [found[name] for name in (BASELINE, "steps1", "steps3", "steps5")]
    assert [opened(answers) for answers in by_steps] == [392, 456, 427, 389]
    shares = [left_open(answers) / opened(answers) for answers in by_steps]
    assert shares == sorted(shares, reverse=True)


def samples(run: str) -> dict[str, dict[str, Sample]]:
    """By arm and problem."""
    found: dict[str, dict[str, Sample]] = {}
    for sample in SampleFile(REFERENCE / run / SAMPLES).read():
        found.setdefault(sample.arm, {})[sample.id] = sample
    return found


def completions(run: str) -> dict[str, dict[str, str]]:
    """By arm and problem."""
    found = samples(run)
    return {arm: {name: s.completion for name, s in own.items()} for arm, own in found.items()}


def opened(answers: dict[str, str]) -> int:
    return sum(answer.startswith("<think>") for answer in answers.values())


def left_open(answers: dict[str, str]) -> int:
    return sum(
        answer.startswith("<think>") and "</think>" not in answer for answer in answers.values()
    )


def test_loops_in_ordinary_chats() -> None:
    stands(STUDY, "**The paper's setting harms plain chats on this model.**")
    stands(STUDY, "With five steps of lr 0.1 most answers go round in circles")
    stands(
        STUDY, "Five steps of lr 0.01 and one step of lr 0.1 do the opposite: fewer answers loop."
    )
    stands(README, "the paper's setting makes most answers go round in circles.")
    found = arms("study/chats_135m")
    most = found["steps5"].metrics[LOOPS]
    assert told(most) == 1 and most.interval is not None and most.interval[0] > 0.5
    for name in ("steps1", "steps5-lr0.01"):
        assert told(found[name].metrics[LOOPS]) == -1, name


def test_loops_in_ordinary_chats_of_the_larger_model() -> None:
    stands(STUDY, "Between seven and ten answers of a hundred loop, with SLOT and without")
    stands(STUDY, "one of ten points more is not excluded.")
    found = arms("study/chats_1.5b")
    assert all(0.07 < (row.metrics[LOOPS].value or 0) <= 0.1 for row in found.values())
    differences = [row.metrics[LOOPS] for row in with_slot("study/chats_1.5b")]
    assert all(told(difference) == 0 for difference in differences)
    assert 0.08 < max(bounds(difference)[1] for difference in differences) < 0.12


def test_the_quickstart() -> None:
    stands(README, "the paper's setting makes more answers run into the limit of 64 tokens")
    stands(
        README, "One step makes fewer answers run into the limit, and follows fewer instructions,"
    )
    stands(README, "which chance may explain.")
    _, paper, one_step = read_results(REFERENCE / "quickstart" / RESULTS).arms
    assert (paper.steps, paper.lr) == (5, 0.1)
    names = (STRICT, LOOSE, CUT_OFF, LOOPS)
    signs = {row.name: [told(row.metrics[name]) for name in names] for row in (paper, one_step)}
    assert signs == {"paper": [0, 0, 1, 1], "steps1": [0, 0, -1, 0]}
    assert (one_step.metrics[STRICT].difference or 0) < 0
    stands(README, "many of the answers that follow their instruction then [repeat themselves]")
    right = [one for one in samples("quickstart")["paper"].values() if one.scores[STRICT]]
    assert 3 * sum(is_repetition(sample.completion) for sample in right) > len(right)


def test_what_it_costs_misses_the_aim() -> None:
    stands(STUDY, "the loss is the median of theirs, and misses the aim of 5 per cent.")
    path = REFERENCE / "cost/gsm8k_1.5b_128_at_once.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["arms"]["steps5"]["loss"] > 0.05
    stands(STUDY, "Two rounds, the arms in turn;")
    assert {one["round"] for one in found["rounds"]} == {0, 1}
    stands(STUDY, "So the floor would meet the aim on this machine, and ours does not.")
    path = REFERENCE / "cost/learning_12x160_sharing_96.json"
    multiple = json.loads(path.read_text(encoding="utf-8"))["floor_multiple"]
    floor = found["arms"]["steps5"]["learning_seconds"] / multiple
    least = floor / (found["arms"][BASELINE]["duration"] + floor)
    assert least < 0.05
    stands(STUDY, "times that, where 1.2 was the aim.")
    assert found["arms"]["steps5"]["loss"] / least > 1.2


def test_what_one_request_at_a_time_costs() -> None:
    stands(STUDY, "The median is within the aim, one of the two rounds is not;")
    path = REFERENCE / "cost/gsm8k_1.5b_1_at_once.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    steps5, baseline = found["arms"]["steps5"], found["arms"][BASELINE]
    assert (found["at_once"], found["requests"]) == (1, 3)
    assert steps5["loss"] < 0.05
    speed = {(one["round"], one["arm"]): one["request_throughput"] for one in found["rounds"]}
    assert max(1 - speed[i, "steps5"] / speed[i, BASELINE] for i in (0, 1)) > 0.05
    stands(STUDY, "Learning is a fifth of the loss; the rest is time per token,")
    share = steps5["learning_seconds"] / (steps5["duration"] - baseline["duration"])
    assert 0.15 < share < 0.25


def test_the_card_s_number_on_ifeval() -> None:
    baseline = arms("study/ifeval_135m")[BASELINE].metrics
    values = [baseline[name].value for name in (STRICT, "inst_level_strict_acc")]
    mean = sum(value for value in values if value is not None) / 2
    said = f"{mean:.3f}".removeprefix("0")
    stands(STUDY, f"the same mean of our baseline is {said}.")
    stands(STUDY, "which cuts off half of the answers (`truncated`), is a reason to differ.")
    assert 0.45 < (baseline[CUT_OFF].value or 0) < 0.55


def test_the_readme_names_the_processor_of_the_log() -> None:
    machine = read_results(REFERENCE / "quickstart" / RESULTS).machine
    stands(README, "Made on two cores of an AMD EPYC (AVX-512 with bfloat16, no AMX), in float32:")
    assert machine["cpus"] == 2
    assert machine["processor"].startswith("AMD EPYC")
    assert "avx512_bf16" in machine["instruction_sets"]
    assert "amx_bf16" not in machine["instruction_sets"]
    run = read_results(REFERENCE / "quickstart" / RESULTS).config.model_dump()
    assert run["engine"]["dtype"] == "float32"


def test_published_differences_need_more_problems_than_there_are() -> None:
    stands(STUDY, "AIME 2024 has far fewer problems than any of these")
    page = (ROOT / STUDY).read_text(encoding="utf-8")
    fewest = re.findall(r"^\| `\S+` \| .* \| (\d+) to \d+, median", page, re.M)
    assert len(fewest) == 3
    assert 3 * PROBLEMS["aime24"] < min(map(int, fewest))


def test_the_screen_of_settings() -> None:
    for sentence in (
        "one step makes the first tag less likely, three a little, and five more likely;",
        "with `window: 1` or `4` the first tag gains all that five steps give",
        "Learning from one role or the last tokens alone makes the first tag less likely",
        "`guard` and `safe` leave nothing, and `max_kl` leaves less of what five steps do.",
        "None of gradient descent, L-BFGS, schedules and a bias on the logits makes the first tag "
        "likelier than five steps of AdamW do, and `tolerance: 0.05` stops nothing here.",
    ):
        stands(STUDY, sentence)
    path = REFERENCE / "search/screen_gsm8k.json"
    found = json.loads(path.read_text(encoding="utf-8"))["scores"]
    opens = {name: scores["opens"]["gain"] for name, scores in found.items()}
    five = opens["steps5"]
    assert opens["steps1"] < opens["steps3"] < 0 < five
    assert min(opens["window1"], opens["window4"]) >= five > 0
    none = ("holdout", "safe", "sgd10", "sgd100", "lbfgs", "cosine", "linear", "bias")
    assert max(opens[name] for name in (*none, "system", "user", "last32")) <= 0
    assert max(opens["kl0.003"], opens["kl0.03"], opens["both"]) < five
    assert found["tolerance0.05"] == found["steps5"]
