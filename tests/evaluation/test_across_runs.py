"""Two runs on one page: what is compared between them, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from slot_vllm.evaluation import report
from slot_vllm.evaluation.errors import ConfigError
from slot_vllm.evaluation.samples import SampleFile
from tests.evaluation.stored_runs import LAST_RELEASE, answers, entries, store
from tests.evaluation.test_report import SCORES, Page


def test_two_runs(tmp_path: Path) -> None:
    better = {**SCORES, "slot": [1.0] * 25 + [0.0] * 5}
    changed = [
        sample.model_copy(update={"prompt_sha256": "another"}) if sample.id == "29" else sample
        for sample in answers(better)
    ]
    only = answers(SCORES, task="only")
    a = store(tmp_path / "a", answers(SCORES))
    b = store(tmp_path / "b", changed + only, config={"name": "b", "model": "models/large"})
    found = Page(report.write([a, b], tmp_path / "both.html"))
    assert [row[:3] for row in found.rows if row and row[0] in "ab" and row[2:3] == ["slot"]] == [
        ["a", "sums", "slot"],
        ["b", "sums", "slot"],
        ["b", "only", "slot"],
    ]
    (row,) = [row for row in found.rows if row[:4] == ["exact", "slot", "5, 0.1", "5, 0.1"]]
    # 13 gained and none lost of the 29 with the same prompt.
    assert row[4:6] == ["29", "30 and 30"]
    assert row[6].startswith("+0.4483 [")
    assert row[7:] == ["0.00024", "0.00049"]
    assert (
        "sums, slot, b against a, exact: higher by 0.4483 (p = 0.00049, corrected for 2 arms)"
        in (found.text)
    )
    assert "Only b has this task: nothing is compared." in found.text
    assert ["model", "models/tiny", "models/large"] in found.rows


def test_two_runs_do_not_replace_the_page_of_one(tmp_path: Path) -> None:
    a, b = (store(tmp_path / name, answers(SCORES)) for name in "ab")
    page = report.write([a])
    own = page.read_text()
    with pytest.raises(ConfigError, match=r"--output: several runs need one"):
        report.write([a, b])
    assert page.read_text() == own


def test_two_runs_that_share_no_problem(tmp_path: Path) -> None:
    a = store(tmp_path / "a", answers(SCORES))
    b = store(tmp_path / "b", answers(SCORES, prompt="another"))
    found = Page(report.write([a, b], tmp_path / "both.html"))
    assert "slot: no problem with the same id and prompt was answered in both runs." in found.text
    assert "shared problems" not in found.text


@pytest.mark.parametrize(
    ("changed", "remark"),
    [
        ({"metric": "other"}, "slot: scored by exact in one run, by other in the other."),
        ({"value": 0.9}, "slot: exact is not the mean of its problems' scores."),
    ],
)
def test_two_runs_whose_scores_cannot_be_compared(
    tmp_path: Path, changed: dict[str, Any], remark: str
) -> None:
    a = store(tmp_path / "a", answers(SCORES))
    rows = entries(answers(SCORES))
    b = store(tmp_path / "b", answers(SCORES), arms=[rows[0], rows[1] | changed])
    found = Page(report.write([a, b], tmp_path / "both.html"))
    assert remark in found.text
    assert "sums, baseline, b against a, exact: no difference can be told" in found.text
    assert "sums, slot, b against a, exact" not in found.text


def test_two_runs_that_scored_differently_are_refused_by_name(tmp_path: Path) -> None:
    def definition(scorer: str) -> dict[str, Any]:
        metrics = {"exact": scorer}
        return {"sums": {"prompt": "", "metrics": metrics, "lighteval": "", "answers": 1}}

    a = store(tmp_path / "a", answers(SCORES), tasks=definition("old.Exact 12"))
    b = store(tmp_path / "b", answers(SCORES), tasks=definition("new.Exact 34"))
    text = Page(report.write([a, b], tmp_path / "both.html")).text
    assert "exact: a was scored by old.Exact 12, b by new.Exact 34; `slot-vllm rescore`" in text
    assert "b against a, exact" not in text
    # How answers end is no matter of scorers.
    assert "sums, slot, b against a, truncated: no difference can be told" in text


def test_a_run_that_does_not_record_its_scorer_beside_one_that_does(tmp_path: Path) -> None:
    metrics = {"exact": "new.Exact 34"}
    known = {"sums": {"prompt": "", "metrics": metrics, "lighteval": "", "answers": 1}}
    old = store(tmp_path / "old", answers(SCORES))
    new = store(tmp_path / "new", answers(SCORES), tasks=known)
    for pair in ([old, new], [new, old]):
        text = Page(report.write(pair, tmp_path / "both.html")).text
        assert "old does not record what scored its answers" in text
        assert "new does not record" not in text
        assert "`slot-vllm rescore` scores both runs alike." in text
        assert f"{pair[1].name} against {pair[0].name}, exact: no difference can be told" in text
    again = store(tmp_path / "again", answers(SCORES), tasks=known)
    assert "does not record" not in Page(report.write([new, again], tmp_path / "both.html")).text


def test_two_arms_of_one_name_and_other_settings(tmp_path: Path) -> None:
    a = store(tmp_path / "a", answers(SCORES))
    rows = entries(answers(SCORES))
    rows[1]["arm"]["reduction"] = "mean_over_rows"
    b = store(tmp_path / "b", answers(SCORES), arms=rows)
    text = Page(report.write([a, b], tmp_path / "both.html")).text
    assert "slot is another arm in each run: reduction mean and mean_over_rows." in text


def test_a_run_of_the_last_release_beside_one_of_this(tmp_path: Path) -> None:
    old = LAST_RELEASE / "quickstart"
    samples = SampleFile(old / "samples.jsonl").read()
    rows = [{**row, "metric": "pass@k:k=1", "metrics": {}} for row in entries(samples)]
    new = store(tmp_path / "new", samples, arms=rows)
    found = Page(report.write([old, new], tmp_path / "both.html"))
    assert "aime24, slot, new against quickstart, truncated: " in found.text
    assert "aime24, slot, new against quickstart, loops: " in found.text
    assert "aime24, slot, new against quickstart, pass@k:k=1: " in found.text


def test_runs_of_the_same_name(tmp_path: Path) -> None:
    a, b = (store(tmp_path / part / "run", answers(SCORES)) for part in "ab")
    text = Page(report.write([a, b], tmp_path / "both.html")).text
    assert f"SLOT evaluation: run ({a}), run ({b})" in text
    assert "The two runs' configurations are the same." in text
