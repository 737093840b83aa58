"""The docs' site: built strictly, it has what the code host shows of the same files."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from tests.conftest import ROOT, starts

pytest.importorskip("mkdocs", reason="mkdocs is not installed; slot-vllm[dev] brings it")

NAV = re.findall(r"^ +- (?:[\w ]+: )?(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
SOURCES = ("mkdocs.yml", "scripts/site_pages.py", "docs", "slot_vllm", "logs", "scripts/grafana")
TAGS = ("h1", "h2", "h3", "h4", "table", "td", "li", "pre", "a", "img", "strong")


def build(sources: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(
        command, cwd=sources, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
@starts
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    return folder


def html(site: Path, path: str) -> str:
    """The page that ``path`` of the repository became."""
    folder, name = (site / path).parent, Path(path).stem
    page = folder / "index.html" if name == "README" else folder / name / "index.html"
    return page.read_text(encoding="utf-8")


class Shown(HTMLParser):
    """What the page itself holds, without the theme's parts and the headings' own links."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._within = False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "article":
            self._within = True
        elif self._within and ("class", "headerlink") not in attributes and tag in TAGS:
            self.counts[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        self._within &= tag != "article"


def test_every_page_is_in_the_navigation_once() -> None:
    pages = [f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")]
    pages += ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "patches/README.md"]
    linked = {"logs/reference/coverage.md"}
    assert sorted(NAV) == sorted([*pages, *linked])


@pytest.mark.parametrize("path", [path for path in NAV if path != "docs/reference.md"])
def test_a_page_is_what_the_code_host_shows(path: str, site: Path) -> None:
    """A list that needs a blank line or another indent here, or a table that is none."""
    host, ours = Shown(), Shown()
    text = (ROOT / path).read_text(encoding="utf-8")
    host.feed(f"<article>{MarkdownIt('commonmark').enable('table').render(text)}</article>")
    ours.feed(html(site, path))
    assert host.counts["h1"] == 1
    assert ours.counts == host.counts


def test_a_link_to_code_shows_it(site: Path) -> None:
    page = html(site, "docs/method.md")
    [link] = set(re.findall(r'href="([^"]*optimize\.py/)"', page))
    shown = (site / "docs/method" / link / "index.html").resolve()
    text = re.sub(r"<[^>]+>", "", shown.read_text(encoding="utf-8"))
    assert "def optimize(" in text and "slot_vllm/optim/optimize.py" in text


def test_the_reference_has_the_docstrings(site: Path) -> None:
    page = html(site, "docs/reference.md")
    for name in ("slot_stats", "SlotParams", "optimize", "read_results", "slot"):
        assert re.search(rf'<h\d id="slot_vllm\.[\w.]*\b{name}"', page), name
    assert "Counters since start" in page


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe)[^>]+src="([^"]+)"', text)
        loaded += re.findall(r'<link rel="(?:stylesheet|preconnect)"[^>]*href="([^"]+)"', text)
        assert [url for url in loaded if "//" in url] == [], page


def test_what_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    pages = [path for path in NAV if not path.startswith(("docs/", "logs/"))]
    for name in (*SOURCES, *pages):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    page = tmp_path / "docs/method.md"
    wrong = "[a](no.md) [b](settings.md#no-heading) [c](../slot_vllm/no.py)"
    page.write_text(page.read_text(encoding="utf-8") + f"\n{wrong}\n", encoding="utf-8")
    (tmp_path / "docs/lost.md").write_text("# In no navigation\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    for part in ("'no.md'", "#no-heading", "'../slot_vllm/no.py'", "docs/lost.md"):
        assert part in done.stderr
