"""Stored answers scored instruction by instruction, and the table that is made of it."""

import json
import re
import sys
from pathlib import Path

import pytest

from slot_vllm.evaluation import sentences
from slot_vllm.evaluation.export import packed
from tests.conftest import ROOT
from tests.evaluation.finished_runs import finish

sys.path.insert(0, str(ROOT / "scripts"))
import score_instructions
from tables.instructions import INSTRUCTIONS, instructions, together
from tables.texts import examples

NO_COMMA, TITLE = "punctuation:no_comma", "detectable_format:title"
# Of two instructions each. Loosely, an answer is read without its first line, too.
ANSWERS = {
    "baseline": ["Sure, here it is:\nThe <<Moon>> is a rock.", "a, b"],
    "slot": ["<<Moon>> it circles the earth.", "a b"],
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    if not sentences.there():
        pytest.skip("NLTK's punkt_tab is not there: slot-vllm doctor --fix")
    data = tmp_path / "data.jsonl"
    item = {"prompt": "Say it.", "instruction_id_list": [NO_COMMA, TITLE], "kwargs": [{}, {}]}
    data.write_text("".join(json.dumps(item | {"prompt": f"Say {i}."}) + "\n" for i in (1, 2)))
    made = finish(
        tmp_path / "run",
        lambda arm, number, gold: ANSWERS[arm][number],
        tasks=[{"name": "ifeval", "data": str(data)}],
    )
    packed.write(made, tmp_path / "packed")
    return tmp_path / "packed"


def score(run: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    monkeypatch.setattr(sys, "argv", ["score_instructions.py", str(run), *more])
    score_instructions.main()


def test_each_instruction_of_each_answer(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score(run, monkeypatch)
    text = (run / INSTRUCTIONS).read_text()
    assert "Say" not in text
    assert json.loads(text) == {
        "kinds": {"0": [NO_COMMA, TITLE], "1": [NO_COMMA, TITLE]},
        "arms": {
            # lighteval shuffles: the first to be asked is the data's second.
            "baseline": {"1": ["01", "11"], "0": ["00", "00"]},
            "slot": {"1": ["11", "11"], "0": ["10", "10"]},
        },
        "quotes": {"baseline": [], "slot": []},
    }
    strict = instructions(run, ["strict"]).splitlines()
    assert strict[2:4] == [f"| `{TITLE}` | 2 | 1 | +0 -0 |", f"| `{NO_COMMA}` | 2 | 0 | +2 -0 |"]
    assert strict[-1].startswith("Of these 2 differences (strict), 0 have p ≤ 0.05 taken alone")
    loose = instructions(run, ["loose"]).splitlines()
    assert loose[3] == f"| `{NO_COMMA}` | 2 | 1 | +1 -0 |"


def test_what_is_told_is_corrected_for_all_differences() -> None:
    # Holm: .001 * 4, .02 * 3, ...
    said = together({"a": 0.02, "b": 0.001, "c": 0.9, "d": 0.5}, "strict")
    assert said.endswith("corrected for all 4 of them, 1: b, p = 0.004.")
    assert "2 have p ≤ 0.05 taken alone" in said


def test_scores_that_are_others_today_stop_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score_instructions, "score_stored", lambda *_: {"prompt_level_strict_acc": 1})
        with pytest.raises(SystemExit, match=r"baseline, problem 0: .* is 1 today"):
            score(run, monkeypatch)
    assert not (run / INSTRUCTIONS).exists()


def test_arms_that_came_later_are_asked_for(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score(run, monkeypatch)
    path = run / INSTRUCTIONS
    found = json.loads(path.read_text())
    del found["arms"]["slot"]
    path.write_text(json.dumps(found))
    with pytest.raises(ValueError, match="other arms"):
        instructions(run, ["strict"])


def test_eight_words_in_a_row_are_a_quotation() -> None:
    words = "one two three four five six seven eight nine"
    for answer, quotes in {
        "So: Two three, four five six seven eight NINE!": True,
        "two three four five six seven eight and nine": False,
        "stone two three four five six seven eight": False,
    }.items():
        assert score_instructions._quotes(answer, words) == quotes
    assert score_instructions._quotes("Say it, he said: say it.", "Say it.")


def test_answers_that_quote_are_no_examples(tmp_path: Path) -> None:
    run = finish(tmp_path / "run")
    shown = examples(run, ["pass@k:k=1"])
    [problem] = set(re.findall(r"problem (\w+), gained", shown))
    found = {"kinds": {}, "arms": {}, "quotes": {"slot": [problem]}}
    (run / INSTRUCTIONS).write_text(json.dumps(found))
    other = examples(run, ["pass@k:k=1"])
    assert f"problem {problem}, gained" not in other and "gained" in other
