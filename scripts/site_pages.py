"""A hook of mkdocs: the site has the repository's layout, so that a link of a page leads to the
same file on both. What a page links to outside the pages, such as code, is a page that shows it."""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")
# Not found by the search, and named by its path.
_SHOWN = """---
title: {path}
search: {{exclude: true}}
---
``````{language} linenums="1"
{text}
``````
"""


def linked(page: str, text: str) -> list[str]:
    """The repository's paths that the links of ``page`` (its path) lead to, in order."""
    folder = posixpath.dirname(page)
    return [posixpath.normpath(posixpath.join(folder, link)) for link in _LINK.findall(text)]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Every page of the repository, what they show, and the theme's own files. Links that lead
    nowhere are left to mkdocs, which reports them."""
    of_docs = [file for file in files if file.src_dir == config.docs_dir]
    found = Files([file for file in files if file not in of_docs])
    pages = [f"docs/{file.src_uri}" for file in of_docs if file.is_documentation_page()]
    pages += ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "patches/README.md"]
    others = [f"docs/{file.src_uri}" for file in of_docs if not file.is_documentation_page()]
    shown: list[str] = []
    for page in pages:
        for path in linked(page, (ROOT / page).read_text(encoding="utf-8")):
            if (ROOT / path).is_file() and path not in (*pages, *others, *shown):
                (pages if path.endswith(".md") else shown).append(path)
    for path in (*pages, *others):
        found.append(File(path, str(ROOT), config.site_dir, config.use_directory_urls))
    for path in shown:
        text = (ROOT / path).read_text(encoding="utf-8")
        content = _SHOWN.format(path=path, language=Path(path).suffix[1:], text=text)
        level = InclusionLevel.NOT_IN_NAV
        found.append(File.generated(config, f"{path}.md", content=content, inclusion=level))
    return found


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to a shown file lead to its page."""

    def link(match: re.Match[str]) -> str:
        [path] = linked(page.file.src_uri, f"]({match[1]})")
        return f"{match[1]}.md" if files.get_file_from_path(f"{path}.md") else match[1]

    return _LINK.sub(link, markdown)
