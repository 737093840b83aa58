"""The numbers of README and study are those of the committed logs, and the tables of settings
what slot_vllm/params.py declares."""

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from slot_vllm.evaluation.directory import RESULTS, read_results
from slot_vllm.evaluation.samples import SAMPLES, SampleFile
from slot_vllm.params import REQUEST_KEYS, SlotConfig, SlotParams
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import fill_tables
from tables.instructions import INSTRUCTIONS, RULES

REFERENCE = ROOT / "logs" / "reference"
PAGES = [
    "README.md",
    "docs/study.md",
    "docs/study_examples.md",
    "docs/settings.md",
    "docs/releases.md",
    "docs/architectures.md",
]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_what_its_logs_say(page: str) -> None:
    assert ROOT / page in fill_tables.PAGES
    text = (ROOT / page).read_text(encoding="utf-8")
    assert fill_tables._BLOCK.search(text)
    assert fill_tables.filled(text) == text


# Of settings, versions, addresses and levels; and what is quoted: of the paper right answers (.575
# to .662) and the form (.22, .72), a card's .299, our mean beside it, which test_verdicts holds.
_QUOTED = {
    "README.md": {"2505.12392", "3.11", "0.1", "2.0"},
    "docs/study.md": {
        *("2505.12392", "1.5", "0.01", "0.05", "0.1"),
        *(".22", ".72", ".575", ".582", ".610", ".636", ".660", ".662", ".299", ".281"),
    },
    "docs/study_examples.md": set(),
}


@pytest.mark.parametrize("page", _QUOTED)
def test_no_number_stands_outside_the_tables(page: str) -> None:
    """Per cent and decimals are results, but for those that are quoted."""
    text = (ROOT / page).read_text(encoding="utf-8")
    outside = fill_tables._BLOCK.sub("", text)
    assert re.findall(r"[^\n]*\d %[^\n]*", outside) == []
    assert {*re.findall(r"(?<![\w.])\d*\.\d+(?!\w)", outside)} == _QUOTED[page]


@pytest.mark.parametrize("page", _QUOTED)
def test_an_edited_number_is_found(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each block is made from the logs once.
    made: dict[tuple[str, ...], str] = {}

    def once(kind: str, make: Callable[[Path, Sequence[str]], str]) -> Callable[..., str]:
        def block(directory: Path, names: Sequence[str]) -> str:
            key = (kind, str(directory), *names)
            return made[key] if key in made else made.setdefault(key, make(directory, names))

        return block

    kinds = {kind: once(kind, make) for kind, make in fill_tables._KINDS.items()}
    monkeypatch.setattr(fill_tables, "_KINDS", kinds)
    text = (ROOT / page).read_text(encoding="utf-8")
    count = 0
    for block in fill_tables._BLOCK.finditer(text):
        inside = slice(block.end(1), block.start(5))
        for number in re.finditer(r"\d+", text[inside]):
            start, end = (inside.start + place for place in number.span())
            other = str(int(number.group()) + 1)
            # The block alone: a page is one of them after the other.
            edited = text[block.start() : start] + other + text[end : block.end()]
            assert fill_tables.filled(edited) == block.group() != edited
            count += 1
    assert count > 10


def test_an_edited_setting_is_found() -> None:
    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    for cell in ("a number from 0 to 100", "decoupled weight decay", "| `null` |"):
        assert cell in text
        assert fill_tables.filled(text.replace(cell, "| something else |", 1)) == text


def test_every_setting_is_in_a_table() -> None:
    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    blocks = {found[3]: found[0] for found in fill_tables._BLOCK.finditer(text)}
    keys = {place: re.findall(r"^\| `(\w+)`", block, re.M) for place, block in blocks.items()}
    assert keys["request"] == list(REQUEST_KEYS)
    own = [name for name in SlotConfig.model_fields if name not in SlotParams.model_fields]
    assert keys["engine"] == own


def test_a_block_of_no_kind_is_an_error() -> None:
    with pytest.raises(ValueError, match="<!-- score -->: no such block; allowed: scores, answers"):
        fill_tables.filled("<!-- score quickstart -->\n<!-- end -->")


STUDY = sorted(
    path.parent
    for part in ("study", "search", "claim")
    for path in REFERENCE.glob(f"{part}/*/{RESULTS}")
)
IFEVAL = [run for run in STUDY if run.name.startswith("ifeval")]


@pytest.mark.parametrize("run", STUDY, ids=lambda run: run.name)
def test_the_studys_answers_are_here_without_the_benchmarks_texts(run: Path) -> None:
    assert not (run / SAMPLES).exists()
    samples = SampleFile(run / SAMPLES).read()
    answered = {(row.task, row.name): row.samples for row in read_results(run / RESULTS).arms}
    counted = Counter((sample.task, sample.arm) for sample in samples)
    assert answered == counted
    assert all(sample.prompt is None and sample.gold is None for sample in samples)
    config = read_results(run / RESULTS).config
    assert config.system_prompt is None
    # Nor where they lay on the machine that made it.
    assert not any(Path(task.data or "").is_absolute() for task in config.tasks)
    assert not re.search(r": /", (run / "config.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("run", IFEVAL, ids=lambda run: run.name)
def test_the_kinds_of_instructions_are_of_the_same_answers(run: Path) -> None:
    """Where a run has them; a page that shows them needs them."""
    path = run / INSTRUCTIONS
    if not path.exists():
        pytest.skip(f"{run.name}: scripts/score_instructions.py was not run on it")
    found = json.loads(path.read_text(encoding="utf-8"))
    samples = SampleFile(run / SAMPLES).read()
    assert Counter(s.arm for s in samples) == {a: len(p) for a, p in found["arms"].items()}
    for sample in samples:
        for rule, followed in zip(RULES, found["arms"][sample.arm][sample.id], strict=True):
            assert len(followed) == len(found["kinds"][sample.id])
            assert sample.scores[f"prompt_level_{rule}_acc"] == ("0" not in followed)
    for row in read_results(run / RESULTS).arms:
        for i, rule in enumerate(RULES):
            every = "".join(followed[i] for followed in found["arms"][row.name].values())
            share = every.count("1") / len(every)
            assert row.metrics[f"inst_level_{rule}_acc"].value == pytest.approx(share)


def test_no_page_shows_a_benchmarks_text(benchmarks: Path, prompts: Path) -> None:
    pages = [(ROOT / page).read_text(encoding="utf-8") for page in PAGES]
    shown = " ".join(" ".join(page.split()) for page in pages)
    texts = [(prompts / "gsm8k_system.txt").read_text(encoding="utf-8")]
    for name, column in ("gsm8k_test", "question"), ("ifeval", "prompt"):
        lines = (benchmarks / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        texts += [json.loads(line)[column] for line in lines]
    assert [text for text in texts if " ".join(text.split()) in shown] == []


def test_the_logs_stay_small() -> None:
    logs = (path for path in (ROOT / "logs").rglob("*") if path.is_file())
    assert sum(path.stat().st_size for path in logs) < 8 << 20
