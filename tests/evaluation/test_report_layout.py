"""The report in Chromium: at no width is anything cut, and a wide screen is used."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slot_vllm.evaluation import report
from tests.conftest import ROOT, starts
from tests.evaluation.stored_runs import answers, entries, store
from tests.evaluation.test_report import BROWSERS, GRADED, SCORES, sweep

pytestmark = pytest.mark.full

WIDTHS = (400, 1000, 1600)
LONG = "an_arm_with_a_name_that_is_much_too_long_for_a_telephone"

# What sticks out of the window, out of what would scroll or hide it, or out of its picture.
CUT = """() => {
  for (const one of document.querySelectorAll("details")) one.open = true;
  const width = document.documentElement.clientWidth;
  const named = (e) => `${e.tagName} ${e.className} ${e.textContent.trim().slice(0, 40)}`;
  const found = [];
  for (const e of document.body.querySelectorAll("*:not(option, svg *)")) {
    const { right, left } = e.getBoundingClientRect();
    const hides = getComputedStyle(e).overflowX !== "visible" && e.scrollWidth > e.clientWidth + 1;
    if (right > width + 1 || left < -1 || (hides && e.tagName !== "SELECT")) found.push(named(e));
  }
  for (const text of document.querySelectorAll("svg text")) {
    const inner = text.getBoundingClientRect();
    const outer = text.closest("svg").getBoundingClientRect();
    const out = inner.left < outer.left - 1 || inner.right > outer.right + 1
      || inner.top < outer.top - 1 || inner.bottom > outer.bottom + 1;
    if (out || inner.height < 8) found.push(named(text));
  }
  return found;
}"""
# Texts of one picture that lie on one another.
OVERLAPS = """() => [...document.querySelectorAll("svg")].flatMap((svg) => {
  const texts = [...svg.querySelectorAll("text")].map((e) => [e, e.getBoundingClientRect()]);
  return texts.flatMap(([a, p], i) => texts.slice(i + 1).filter(([, q]) =>
    Math.min(p.right, q.right) - Math.max(p.left, q.left) > 1
    && Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 3
  ).map(([b]) => `${a.textContent.trim()} | ${b.textContent.trim()}`));
})"""
# How far it is to the right of the rightmost thing, and how many columns each grid has.
USED = """() => ({
  right: Math.max(...[...document.querySelectorAll("table, figure, section")]
    .map((e) => e.getBoundingClientRect().right)),
  columns: [...document.querySelectorAll(".columns")].map((grid) => {
    const [first] = grid.children;
    const top = first && first.getBoundingClientRect().top;
    return [...grid.children].filter((e) => e.getBoundingClientRect().top === top).length;
  }),
})"""
# The least contrast of a text and the page, by WCAG; a heat map's cells have grounds of their own.
CONTRAST = """() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map((v) => v / 255)
      .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = light(getComputedStyle(document.body).backgroundColor);
  const texts = [...document.querySelectorAll("p, td, th, summary, a, svg text")]
    .filter((e) => !e.closest(".heat-map"));
  const ratios = texts.map((e) => {
    const ink = light(getComputedStyle(e)[e.closest("svg") ? "fill" : "color"]);
    return (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
  });
  return { ground, least: Math.min(...ratios) };
}"""


@pytest.fixture(scope="module")
@starts
def browser() -> Iterator[Any]:
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on PATH")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield started
        started.close()


def _grid(folder: Path) -> Path:
    """A run of 20 settings, as the published grid has them."""
    cells = [(steps, lr) for steps in (1, 2, 3, 5) for lr in (1e-4, 1e-3, 1e-2, 0.1, 1.0)]
    names = {f"steps{steps}-lr{lr:g}": (steps, lr) for steps, lr in cells}
    values = [
        {"arm": name, "steps": steps, "lr": lr, "value": 0.4 + lr / 100, "difference": lr / 100}
        for name, (steps, lr) in names.items()
    ]
    scores = {"baseline": SCORES["baseline"], **dict.fromkeys(names, SCORES["slot"])}
    best = "steps5-lr1"
    return store(folder / "grid", answers(scores), sweeps=[sweep(cells=values, best=best)])


def _runs(name: str, folder: Path) -> list[Path]:
    if name == "quickstart":
        return [ROOT / "logs/reference/quickstart"]
    if name == "grid":
        return [_grid(folder)]
    scores = {**SCORES, LONG: SCORES["slot"]}
    rows = entries(answers(scores))
    rows[1]["pass_at_k"] = {"4": {"value": 0.875, "interval": [0.5, 0.9]}}
    first = store(folder / "first", answers(scores), arms=rows, sweeps=[sweep()])
    shift = {"id": 1, "token": "'" + "a_token_of_many_letters" * 3 + "'", "shift": 0.75}
    shifts = {"vocabulary_mean": 0.25, "raised": [shift], "lowered": [{**shift, "shift": -0.5}]}
    prompts = [{"id": "0", "prompt": "prompt " * 60, **shifts}]
    inspection = {"arm": LONG, "task": "sums", "problems": 1, "prompts": prompts, **shifts}
    (first / "inspection.json").write_text(json.dumps([inspection]), encoding="utf-8")
    graded = {**GRADED, LONG: GRADED["slot"]}
    return [first, store(folder / "second", answers(graded))]


@pytest.fixture(scope="module", params=["quickstart", "grid", "two runs"])
def page(
    request: pytest.FixtureRequest, browser: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("report")
    path = report.write(_runs(request.param, folder), folder / "report.html")
    shown = browser.new_page()
    shown.goto(path.as_uri())
    yield shown
    shown.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_cut(width: int, scheme: str, page: Any) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    assert page.evaluate(CUT) == []
    assert page.evaluate(OVERLAPS) == []
    contrast = page.evaluate(CONTRAST)
    assert (contrast["ground"] > 0.5) == (scheme == "light")
    assert contrast["least"] >= 4.5


def test_a_wide_screen_is_used(page: Any) -> None:
    columns = {}
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        page.evaluate(CUT)
        used = page.evaluate(USED)
        columns[width] = max(used["columns"])
        assert used["right"] >= 0.9 * width
    assert columns[400] == 1 < columns[1600]


def test_groups_stand_side_by_side(browser: Any, tmp_path: Path) -> None:
    path = report.write(_runs("quickstart", tmp_path), tmp_path / "report.html")
    page = browser.new_page(viewport={"width": 1600, "height": 900})
    page.goto(path.as_uri())
    boxes = [
        page.locator(f"h4:text-is('{name}')").bounding_box() for name in ("easy", "medium", "hard")
    ]
    assert len({box["y"] for box in boxes}) == 1
    assert boxes[0]["x"] < boxes[1]["x"] < boxes[2]["x"]
    page.close()
