"""Gets NLTK's punkt_tab, by which the task ifeval counts sentences, into this environment.

From NLTK's own server or, where that is out of reach, out of the wheel of llama-index-core, which
carries it.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import nltk

NAME = "punkt_tab"
WHEEL = "llama-index-core"
INSIDE = f"_static/nltk_cache/tokenizers/{NAME}.zip"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path(sys.prefix) / "nltk_data", help="one of NLTK's"
    )
    output = parser.parse_args().output
    try:
        nltk.data.find(f"tokenizers/{NAME}/english", paths=[str(output), *nltk.data.path])
        return
    except LookupError:
        pass
    if nltk.download(NAME, download_dir=str(output), quiet=True):
        return
    with tempfile.TemporaryDirectory() as directory:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", directory]
        subprocess.run([*pip, WHEEL], check=True, stdout=sys.stderr)
        [wheel] = Path(directory).glob("*.whl")
        with zipfile.ZipFile(wheel) as outer:
            [name] = [name for name in outer.namelist() if name.endswith(INSIDE)]
            with outer.open(name) as file, zipfile.ZipFile(file) as inner:
                inner.extractall(output / "tokenizers")


if __name__ == "__main__":
    main()
