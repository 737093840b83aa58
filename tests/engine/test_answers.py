from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.engine import cases as cases_module
from tests.engine.answers import RECORDED, Answers, answers_of
from tests.engine.cases import (
    Answer,
    Case,
    assert_delta_equal,
    assert_tokens_equal,
    computed,
    random_tokens,
    reference,
)

CASE = Case(random_tokens(5, seed=1), 3, 0.1, 4, settings=(("loss_tokens", 2),))
ANSWER = Answer([1, 2, 3, 4], [0.5, 0.25, 1.0, 2.0], [0.1, -0.2], [3.0, 2.0], [9.0])


def test_an_answer_is_found_for_its_model_its_case_and_fewer_tokens(tmp_path: Path) -> None:
    file = tmp_path / "answers/some.json.gz"
    Answers(file, "a model").record([(asdict(CASE), asdict(ANSWER))])
    kept = Answers(file, "a model")
    found = kept.find(asdict(CASE))
    assert found == {k: v for k, v in asdict(ANSWER).items() if k != "last_hidden"}
    shorter = kept.find({**asdict(CASE), "new_tokens": 2})
    assert shorter is not None and (shorter["tokens"], shorter["gaps"]) == ([1, 2], [0.5, 0.25])
    assert shorter["delta"] == ANSWER.delta
    for change in ({"new_tokens": 5}, {"lr": 0.2}, {"tokens": (1, 2)}, {"last": 3}):
        assert kept.find({**asdict(CASE), **change}) is None
    assert Answers(file, "another model").find(asdict(CASE)) is None
    # The hidden state is kept where it is asked for, and what was known stays.
    assert kept.find(asdict(CASE), last_hidden=True) is None
    first = Answer([1], [0.5], ANSWER.delta, ANSWER.losses, ANSWER.last_hidden)
    kept.record([({**asdict(CASE), "new_tokens": 1}, asdict(first))], last_hidden=True)
    assert Answers(file, "a model").find(asdict(CASE), last_hidden=True) == asdict(ANSWER)
    kept.record([(asdict(CASE), asdict(ANSWER))])
    assert kept.find(asdict(CASE), last_hidden=True) == asdict(ANSWER)
    # Others' are kept.
    other = Case(CASE.tokens, 5, 0.1, 4)
    Answers(file, "a model").record([(asdict(other), asdict(ANSWER))])
    assert len(list(Answers(file, "a model"))) == 2


def test_what_is_not_recorded_is_computed_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def compute(model: str, cases: Any) -> list[Answer]:
        asked.extend(cases)
        return [ANSWER for _ in cases]

    monkeypatch.setattr(cases_module, "computed", compute)
    kept = Answers(tmp_path / "x.json.gz", "a model")
    monkeypatch.setattr(cases_module, "answers_of", lambda model: kept)
    monkeypatch.setattr(cases_module, "recording", lambda: False)
    with pytest.warns(UserWarning, match="1 answers of some-model are not recorded"):
        assert reference("some-model", [CASE, CASE]) == [ANSWER, ANSWER]
    assert reference("some-model", [CASE]) == [ANSWER]
    assert asked == [CASE]


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(path.name for path in RECORDED.glob("*.gz")))
def test_recorded_answers_are_those_of_transformers(
    name: str, tiny_models: Callable[..., str]
) -> None:
    architecture, head, vocabulary = name.removesuffix(".json.gz").split("-")
    model = tiny_models(
        architecture, head == "tied", None if vocabulary == "None" else int(vocabulary)
    )
    kept = list(answers_of(model))
    assert kept, "recorded of another model: remove the file and use --record-answers"
    recorded = [Answer(**answer) for _, answer in kept]
    cases = [_case(case) for case, _ in kept]
    answers = computed(model, cases)
    assert_tokens_equal([answer.tokens for answer in answers], recorded)
    for case, answer, old in zip(cases, answers, recorded, strict=True):
        assert_delta_equal(answer.delta, old, case.lr / 10)
        assert answer.losses == pytest.approx(old.losses, rel=1e-4, abs=1e-4)
        if old.last_hidden:
            assert answer.last_hidden == pytest.approx(old.last_hidden, rel=1e-4, abs=1e-4)


def _case(kept: dict[str, Any]) -> Case:
    """JSON has no tuples."""

    def whole(value: Any) -> Any:
        return tuple(map(whole, value)) if isinstance(value, list) else value

    return Case(**{name: whole(value) for name, value in kept.items()})
