"""What report.html says of runs, and that it is one file that runs nothing of theirs."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from slot_vllm import cli
from slot_vllm.evaluation import report
from slot_vllm.evaluation.comparison import compare
from slot_vllm.evaluation.errors import ConfigError
from slot_vllm.evaluation.report import sample_browser
from tests.conftest import ROOT
from tests.evaluation.stored_runs import LAST_RELEASE, answers, entries, store

HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=alert(1)> & {{ 1 }}"
SCORES = {"baseline": [1.0] * 10 + [0.0] * 20, "slot": [0.0] + [1.0] * 12 + [0.0] * 17}
GRADED = {"baseline": [0.5, 0.5, 0.25, 0.75], "slot": [0.5, 0.25, 1.0, 1.0]}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class Page(HTMLParser):
    """rows: the cells of all tables; text: what is shown, with single spaces; scripts: by type."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.rows: list[list[str]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._shown: list[str] = []
        self._inside: str | None = None
        self.feed(self.html)
        self.text = " ".join(" ".join(self._shown).split())

    @property
    def samples(self) -> dict[str, Any]:
        """The data of the sample browser."""
        (data,) = [text for tag, text in self.scripts if tag.get("type") == "application/json"]
        return json.loads(data)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag in ("script", "style"):
            self._inside = tag
        if tag == "script":
            self.scripts.append((dict(attributes), ""))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == self._inside:
            self._inside = None
        if tag == "tr":
            self.rows.append([])

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self._inside is None:
            self._shown.append(data)
            if self.rows and self.rows[-1]:
                self.rows[-1][-1] += data


@pytest.fixture
def page(tmp_path: Path) -> Callable[..., Page]:
    """page(samples, **results): the page about one run."""

    def write(*arguments: Any, **results: Any) -> Page:
        return Page(report.write([store(tmp_path / "run", *arguments, **results)]))

    return write


def sweep(**settings: Any) -> dict[str, Any]:
    """Of two settings; the second is better than the first and than the baseline."""
    names = ("baseline", "slot-1", "slot-5")
    cells = [
        {"arm": name, "steps": steps, "lr": lr, "value": value, "difference": difference}
        for name, steps, lr, value, difference in zip(
            names, (0, 1, 5), (None, 0.1, 0.1), (0.5, 0.25, 0.75), (None, -0.25, 0.25), strict=True
        )
    ]
    values = {"task": "sums", "metric": "exact", "problems": 30, "split": None, "best": "slot-5"}
    return {**values, "selected_on": "test data", "cells": cells, **settings}


def test_the_table_and_the_words(page: Callable[..., Page]) -> None:
    samples = answers(SCORES)
    found = page(samples)
    slot = compare(
        {"slot": {str(i): score for i, score in enumerate(SCORES["slot"])}},
        {str(i): score for i, score in enumerate(SCORES["baseline"])},
    )["slot"]
    assert slot.difference_interval is not None
    low, high = slot.difference_interval
    rows = [" ".join(row) for row in found.rows]
    assert "sums baseline - - exact 0.3333 [0.1923, 0.5122] - - - 30 -" in rows
    (row,) = [row for row in found.rows if row[:2] == ["sums", "slot"] and len(row) > 10]
    assert row[5].startswith("0.4000 [0.2459, 0.5768]")
    assert row[6] == f"+0.0667 [{low:+.4f}, {high:+.4f}]"
    assert row[7:] == ["0.62", "0.62", "30", "3.450 → 2.450"]
    assert 0 < found.html.index(slot.words) < found.html.index("<table")
    assert f"Differences by: {slot.method}." in found.text


def test_problems_gained_and_lost(page: Callable[..., Page]) -> None:
    # Both solve problems 1 to 9; SLOT also 10, 11, 12; the baseline also 0.
    assert "both right gained lost both wrong 9 3 1 17" in page(answers(SCORES)).text


def test_scores_that_are_not_right_or_wrong(page: Callable[..., Page]) -> None:
    found = page(answers(GRADED))
    assert "2 up, 1 down" in found.text
    assert "both right" not in found.text


def test_the_largest_difference_comes_first(page: Callable[..., Page]) -> None:
    found = page(answers(GRADED)).samples
    (arm,) = found["arms"]
    shown = [(problem["id"], problem["difference"]) for problem in arm["problems"]]
    assert shown == [("2", 0.75), ("1", -0.25), ("3", 0.25), ("0", 0.0)]
    first = arm["problems"][0]
    assert found["prompts"][first["prompt"]] == {"text": "prompt 2", "gold": ["2"]}
    assert found["answers"][first["baseline"][0]]["text"] == "baseline answers 2"
    assert found["answers"][first["arm"][0]]["text"] == "slot answers 2"
    assert found["answers"][first["arm"][0]]["losses"] == [2.2, 1.2]


def test_what_is_left_out_is_said(
    page: Callable[..., Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_browser, "PROBLEMS", 2)
    monkeypatch.setattr(sample_browser, "CHARACTERS", 20)
    (arm,) = (found := page(answers(GRADED, completion="begin" + "x" * 100 + "end"))).samples[
        "arms"
    ]
    assert (len(arm["problems"]), arm["all"]) == (2, 4)
    assert "At most 2 problems per arm and task" in found.text
    text = found.samples["answers"][0]["text"]
    assert text.startswith("begin")
    assert text.endswith("end")
    assert "88 characters are left out here; samples.jsonl has them" in text


def test_all_arms_are_shown_equally_deep(
    page: Callable[..., Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_browser, "ALL_CHARACTERS", 100)
    scores = {"baseline": [0.0] * 50, "slot": [1.0] * 50, "other": [1.0] * 50}
    arms = page(answers(scores)).samples["arms"]
    depths = [len(arm["problems"]) for arm in arms]
    assert depths[0] == depths[1]
    assert 0 < depths[0] < 50


def test_answers_of_one_problem(page: Callable[..., Page]) -> None:
    samples = [s for i in range(6) for s in answers(GRADED, sample=i, completion=f"answer {i}")]
    found = page(samples[::-1]).samples
    problem = found["arms"][0]["problems"][0]
    assert problem["drawn"] == 6
    shown = [found["answers"][i]["text"] for i in problem["arm"]]
    assert shown == ["answer 0", "answer 1", "answer 2", "answer 3"]


def test_text_of_the_run_stays_text(page: Callable[..., Page], tmp_path: Path) -> None:
    shift = {"id": 1, "token": HOSTILE, "shift": 0.5}
    inspected = {"id": "0", "prompt": HOSTILE, "raised": [shift], "lowered": []}
    directory = store(
        tmp_path / "hostile",
        answers(SCORES, prompt=HOSTILE, completion=HOSTILE + "\ud800", gold=[HOSTILE]),
        config={"name": HOSTILE, "model": HOSTILE},
    )
    inspection = {"arm": "slot", "task": "sums", "problems": 1, "raised": [shift], "lowered": []}
    (directory / "inspection.json").write_text(
        json.dumps([{**inspection, "prompts": [inspected]}]), encoding="utf-8"
    )
    found = Page(report.write([directory]))
    assert len(found.scripts) == 2
    assert not [tag for tag, _ in found.tags if tag == "img"]
    assert found.samples["answers"][0]["text"] == HOSTILE + "\ud800"
    assert f"SLOT evaluation: {HOSTILE}" in found.text
    script = found.scripts[1][1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [a["content"] or "" for _, a in found.tags if "http-equiv" in a]
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{digest}'" in policy


def test_nothing_is_fetched(page: Callable[..., Page]) -> None:
    found = page(answers(SCORES), sweeps=[sweep()])
    for tag, attributes in found.tags:
        for name in ("src", "href", "xlink:href", "data", "poster", "action"):
            reference = attributes.get(name)
            assert reference is None or reference.startswith("#"), (tag, name, reference)
    assert not re.search(r"https?://|@import|url\((?!#)", found.html)


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    run = store(tmp_path / "run", answers(SCORES), sweeps=[sweep()])
    first = report.write([run], tmp_path / "a.html").read_bytes()
    assert report.write([run], tmp_path / "b.html").read_bytes() == first


def test_a_sweep_selected_on_the_test_data(page: Callable[..., Page]) -> None:
    found = page(answers(SCORES), sweeps=[sweep()])
    # The mark stands in the cell of the best setting.
    assert "0.250 -0.250 0.750 +0.250 best" in found.text
    assert found.text.count("The best setting, slot-5, was selected on the test data") == 1
    assert "Its value is too high on average, whatever its p." in found.text
    said = found.html.index("was selected on the test data, so its value is too high on average")
    assert said < found.html.index("<table")
    assert "line: baseline" in found.text


def test_a_sweep_selected_on_a_part(page: Callable[..., Page]) -> None:
    part = sweep(best="slot", selected_on="a part of the problems", split=0.5)
    found = page(answers(SCORES), sweeps=[part])
    assert "was selected on a part of the problems (50 %)" in found.text
    rest = "On the rest, which had no part in the selection: exact 0.4000 [0.2459, 0.5768]"
    assert rest in found.text
    assert "the test data" not in found.text


def test_a_sweep_without_a_baseline(page: Callable[..., Page]) -> None:
    cells = [cell for cell in sweep()["cells"] if cell["steps"]]
    found = page(answers({"slot": SCORES["slot"]}), sweeps=[sweep(cells=cells, best=None)])
    assert "There is no baseline to compare with." in found.text
    assert "line: baseline" not in found.text
    assert "nothing is compared, because no arm has a counterpart named baseline" in found.text


def test_losses_lengths_and_answers_that_were_cut_off(page: Callable[..., Page]) -> None:
    found = page(answers(SCORES))
    assert "3.450 → 2.450 slot Completion length" in found.text
    # 7 of 30 problems are 3 more than a multiple of four.
    assert "median 114, cut off 23 %" in found.text
    (row,) = [r for r in found.rows if r[:2] == ["slot", "30"]]
    assert row[2:6] == ["114", "107 to 122", "101 to 128", "7"]
    assert row[6] == "23.3 % [11.8 %, 40.9 %]"
    assert row[7:] == ["300", "3435"]


def test_parts_of_the_answers_and_pass_at_k(page: Callable[..., Page]) -> None:
    rows = entries(answers(SCORES))
    rows[1]["breakdown"] = {
        "level": {
            "3": {
                "value": 0.25,
                "samples": 8,
                "interval": [0.1, 0.5],
                "difference": 0.125,
                "difference_interval": [-0.25, 0.5],
            },
            "4": {"value": 0.5, "samples": 2},
        }
    }
    rows[1]["pass_at_k"] = {"4": {"value": 0.875, "interval": [0.5, 0.9]}}
    found = page(answers(SCORES), arms=rows)
    interval = "0.2500 [0.1000, 0.5000]"
    # A column per group.
    for group, row in (
        ("3", ["slot", "8", interval, "+0.1250 [-0.2500, +0.5000]"]),
        ("4", ["slot", "2", "0.5000", "-"]),
    ):
        after = found.html.split(f"<h4>{group}</h4>")[1].split("<h4>")[0]
        assert all(cell.split(" [")[0] in after for cell in row)
        assert row in found.rows
    assert ["sums", "slot", "4", "0.8750 [0.5000, 0.9000]"] in found.rows


def test_many_arms_are_summed_up(page: Callable[..., Page]) -> None:
    scores = {"baseline": [0.0] * 30}
    scores |= {f"slot-{i:02}": [1.0] * 20 + [0.0] * 10 for i in range(3)}
    scores |= {f"slot-{i:02}": [0.0] * 30 for i in range(3, 25)}
    found = page(answers(scores))
    assert "3 of 25 arms differ from the baseline in exact, at 5 % after correction" in found.text
    assert "The other 22" in found.text


def test_what_delta_does(tmp_path: Path) -> None:
    run = store(tmp_path / "run", answers(SCORES))
    raised = [{"id": 1, "token": repr(" so\n"), "shift": 0.75}]
    lowered = [{"id": 2, "token": "<|end|>", "shift": -0.5}]
    shifts = {"raised": raised, "lowered": lowered}
    prompts = [{"id": str(i), "prompt": f"prompt {i}", **shifts} for i in range(30)]
    inspection = {"arm": "slot", "task": "sums", "problems": 30, **shifts, "prompts": prompts}
    inspection["vocabulary_mean"] = 0.125
    (run / "inspection.json").write_text(json.dumps([inspection]), encoding="utf-8")
    found = Page(report.write([run]))
    assert "' so\\n'" in found.text
    # Less the mean, which is common to all tokens.
    assert "+0.625" in found.text and "-0.625" in found.text
    assert "The mean over the vocabulary is +0.125." in found.text
    assert "Prompt by prompt: the first 20 of 30; all are in inspection.json" in found.text
    assert ["19", "prompt 19", "' so\\n' +0.750", "<|end|> -0.500"] in found.rows
    assert "did not record the means of single prompts" in found.text
    inspection["prompts"] = [{**prompt, "vocabulary_mean": 0.25} for prompt in prompts]
    (run / "inspection.json").write_text(json.dumps([inspection]), encoding="utf-8")
    found = Page(report.write([run]))
    assert ["19", "prompt 19", "' so\\n' +0.500", "<|end|> -0.750"] in found.rows
    assert "did not record the means" not in found.text


def test_contents_at_the_top_and_what_is_closed(page: Callable[..., Page]) -> None:
    found = page(answers(SCORES), sweeps=[sweep()])
    links = [a["href"] for tag, a in found.tags if tag == "a"]
    headings = [f"#{a['id']}" for tag, a in found.tags if tag == "h2" and "id" in a]
    assert links == headings and len(links) == 6
    assert found.html.index("<nav>") < found.html.index("What the data allow to say")
    assert "Results Against the baseline Sweep Prompt loss" in found.text
    closed = re.findall(r"<details><summary>([^<]*)", found.html)
    assert "Generation, versions, machine" in closed and "Every metric" in closed


def test_without_an_inspection(page: Callable[..., Page]) -> None:
    assert "What delta does" not in page(answers(SCORES)).text


def test_a_run_of_the_repository(tmp_path: Path) -> None:
    run = LAST_RELEASE / "quickstart"
    found = Page(report.write([run], tmp_path / "report.html"))
    (arm,) = [a for a in json.loads((run / "results.json").read_text())["arms"] if a["steps"]]
    assert arm["words"] in found.text
    assert "0.321 → 0.253" in found.text
    assert "vllm 0.32" in found.text


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("results.json", None, r"run/results\.json: no such file"),
        ("results.json", "{", r"run/results\.json: not JSON: "),
        ("results.json", "[]", r"run/results\.json: "),
        (
            "results.json",
            '{"arms": [{"name": "slot"}]}',
            r"results\.json: arms\.0\.value: Field re",
        ),
        ("results.json", b"\xff", r"run/results\.json: not JSON: "),
        ("samples.jsonl", None, r"run/samples\.jsonl: no samples"),
        ("samples.jsonl", "{}\n", r"run/samples\.jsonl:1: not a sample"),
        ("samples.jsonl", b"\xff\n", r"run/samples\.jsonl: cannot be read"),
        ("inspection.json", "{}", r"run/inspection\.json: "),
    ],
)
def test_a_directory_without_a_finished_run(
    tmp_path: Path, file: str, content: str | bytes | None, message: str
) -> None:
    run = store(tmp_path / "run", answers(SCORES))
    if content is None:
        (run / file).unlink()
    else:
        (run / file).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ConfigError, match=message) as error:
        report.write([run])
    assert "\n" not in str(error.value)
    assert not (run / "report.html").exists()


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = store(tmp_path / "run", answers(SCORES))
    output = tmp_path / "page.html"
    assert cli.main(["report", str(run), "--output", str(output)]) == 0
    assert capsys.readouterr().out.strip() == str(output)
    assert Page(output).text.startswith("SLOT: run")
    for arguments in (
        [str(tmp_path / "none")],
        [str(run), str(run)],
        [str(run), "--output", str(tmp_path / "none" / "page.html")],
    ):
        assert cli.main(["report", *arguments]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_pages_files_are_packaged() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["slot_vllm.evaluation.report"]
    files = [path for path in Path(report.__file__).parent.iterdir() if path.is_file()]
    for path in files:
        assert path.suffix == ".py" or any(fnmatch(path.name, p) for p in patterns), path


def test_in_a_browser(tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on PATH")
    completion = "the last answer " + HOSTILE
    run = store(tmp_path / "run", answers(GRADED, completion=completion), sweeps=[sweep()])
    screenshot = tmp_path / "page.png"
    options = "headless no-sandbox disable-gpu disable-quic no-first-run disable-sync dump-dom"
    options += " disable-background-networking disable-component-update"
    command = [
        browser,
        *(f"--{option}" for option in options.split()),
        f"--user-data-dir={tmp_path / 'profile'}",
        # No network: no name resolves, and what has an address goes to a closed port.
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--proxy-server=127.0.0.1:9",
        "--window-size=1400,3000",
        f"--screenshot={screenshot}",
        report.write([run]).as_uri(),
    ]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "<title>SLOT: run</title>" in shown
    entry = shown[shown.index('id="shown-problem"') :]
    assert "Difference in score +0.75" in entry
    assert entry.index("Problem 2: prompt") < entry.index("the last answer &lt;/script&gt;")
    assert entry.count("the last answer") >= 2
    assert "All 4 problems are shown." in shown
    assert screenshot.stat().st_size > 20_000
