"""What W delta raises and lowers most, with readable tokens; and the chart of it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from slot_vllm.evaluation import inspection_view
from slot_vllm.evaluation.inspection_record import Inspection, Shifts, TokenShift, extremes
from slot_vllm.evaluation.report import figures
from slot_vllm.evaluation.token_text import TokenText


def test_extremes_are_signed_sorted_and_limited() -> None:
    shifts = np.array([0.5, -1.0, 2.0, 0.0, -3.0, 2.0], np.float32)
    found = extremes(shifts, 2, str)
    assert found.vocabulary_mean == pytest.approx(0.5 / 6)
    assert found.raised == [
        TokenShift(id=2, token="2", shift=2.0),
        TokenShift(id=5, token="5", shift=2.0),
    ]
    assert found.lowered == [
        TokenShift(id=4, token="4", shift=-3.0),
        TokenShift(id=1, token="1", shift=-1.0),
    ]
    found = extremes(shifts, 100, str)
    assert [token.id for token in found.raised] == [2, 5, 0]
    assert [token.id for token in found.lowered] == [4, 1, 3]
    assert (
        extremes(np.zeros(9), 3, str)
        == extremes(np.zeros(0), 3, str)
        == Shifts(vocabulary_mean=0.0)
    )


@pytest.mark.parametrize("common", [-8.0, 8.0])
def test_a_shift_that_is_common_to_all_raises_and_lowers_nothing(common: float) -> None:
    shifts = np.array([0.5, -1.0, 2.0, 0.0, -3.0, 1.5])
    alone, found = extremes(shifts, 2, str), extremes(shifts + common, 2, str)
    for ours, theirs in ((found.raised, alone.raised), (found.lowered, alone.lowered)):
        assert [token.id for token in ours] == [token.id for token in theirs]
        less = [found.less_mean(token) for token in ours]
        assert less == pytest.approx([alone.less_mean(token) for token in theirs])


def test_extremes_of_a_large_vocabulary() -> None:
    shifts = np.random.default_rng(0).normal(size=20_000).astype(np.float32)
    found = extremes(shifts, 15, str)
    order = np.argsort(shifts)
    assert [token.id for token in found.raised] == order[::-1][:15].tolist()
    assert [token.id for token in found.lowered] == order[:15].tolist()


def test_tokens_can_be_read(tiny_model: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    text = TokenText(tokenizer)

    def of(name: str) -> str:
        return text(tokenizer.convert_tokens_to_ids(name))

    assert [of("a"), of("Ġ"), of("Ċ"), of("'")] == ["'a'", "' '", "'\\n'", '"\'"']
    assert of("<|end|>") == "<|end|>"
    assert of("â") == "â"  # the first byte of an em dash, not the letter
    assert text(len(tokenizer)) == f"<unused {len(tokenizer)}>"


def test_leading_spaces_that_a_tokenizer_drops_at_the_start() -> None:
    class Sentences:
        """Decodes like Llama 2's tokenizer."""

        pieces = ("<s>", "▁a", "▁the", "<tool>", "the")

        @property
        def added_tokens_decoder(self) -> dict[int, Any]:
            return {0: SimpleNamespace(special=True), 3: SimpleNamespace(special=False)}

        def encode(self, _text: str, **_options: Any) -> list[int]:
            return [1]

        def convert_ids_to_tokens(self, token: int) -> str:
            return self.pieces[token]

        def decode(self, tokens: list[int], **_options: Any) -> str:
            text = "".join(self.pieces[token] for token in tokens)
            return text.replace("▁", " ").removeprefix(" ")

    text = TokenText(Sentences())
    assert [text(i) for i in range(6)] == [
        "<s>",
        "' a'",
        "' the'",
        "'<tool>'",
        "'the'",
        "<unused 5>",
    ]


def _inspection(tokens: list[TokenShift], arm: str = "slot") -> Inspection:
    raised = [token for token in tokens if token.shift > 0]
    lowered = [token for token in tokens if token.shift < 0]
    return Inspection(
        arm=arm, task="aime24", problems=3, vocabulary_mean=0.25, raised=raised, lowered=lowered
    )


def test_the_chart_has_a_bar_for_every_token(tmp_path: Path) -> None:
    # As a formula this would not parse.
    tokens = [TokenShift(id=i, token=f"'$\\frac{i}$'", shift=i - 4.5) for i in range(10)]
    inspections = [_inspection(tokens), _inspection(tokens[:2], "other"), _inspection([], "none")]
    first, second, empty = figures.shifts_chart(inspections).axes
    assert [label.get_text() for label in first.get_yticklabels()] == [
        t.token for t in [*tokens[5:], *reversed(tokens[:5])]
    ]
    assert (len(first.patches), len(second.patches), len(empty.patches)) == (10, 2, 0)
    for suffix, starts in ((".png", b"\x89PNG"), (".SVG", b"<?xml")):
        path = tmp_path / f"chart{suffix}"
        inspection_view.write_chart(inspections, path)
        assert path.read_bytes().startswith(starts)
    assert len(list(tmp_path.iterdir())) == 2


def test_very_many_bars_are_still_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = [TokenShift(id=i, token="'x'", shift=i - 39.5) for i in range(80)]
    chart = figures.shifts_chart([_inspection(tokens)] * 2)
    assert len(chart.axes[0].patches) == 50
    # What matplotlib draws at most; two panels stand for the many that would reach it.
    assert figures._MOST_PIXELS < 2**16
    monkeypatch.setattr(figures, "_MOST_PIXELS", chart.bbox.height / 3)
    assert figures.shifts_chart([_inspection(tokens)] * 2).bbox.height < chart.bbox.height / 2


def test_a_chart_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(inspection_view.ConfigError, match="No such file or directory"):
        inspection_view.write_chart([_inspection([])], tmp_path / "nowhere" / "chart.png")
