"""What pyproject.toml cannot say: the README as a package index shows it, and where its links lead.

There a link within the repository leads nowhere. It becomes one to below SLOT_PROJECT_URL, the
web address of the repository's files; in a build without it, plain text.
"""

import os
import re
from pathlib import Path

from setuptools import setup

PAPER = "https://arxiv.org/abs/2505.12392"
_RELATIVE = re.compile(r"(?<!!)\[([^\]]+)\]\((?![a-z]+:)([^)]+)\)")


def for_index(readme: str, url: str | None) -> str:
    """The README with absolute links only."""
    return _RELATIVE.sub(rf"[\1]({url}/\2)" if url else r"\1", readme)


if __name__ == "__main__":
    url = os.environ.get("SLOT_PROJECT_URL", "").rstrip("/")
    readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    setup(
        long_description=for_index(readme, url),
        long_description_content_type="text/markdown",
        project_urls={"Paper": PAPER, **({"Source": url} if url else {})},
    )
