"""What the commands share: their flags' types, and where the result goes."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def positive(text: str) -> int:
    """For argparse: an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def add_result_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON")
    parser.add_argument("--output", type=Path, help="also write the JSON to this file")


def give(result: dict[str, Any], table: str, options: argparse.Namespace) -> None:
    """Writes and prints as the flags of ``add_result_flags`` say."""
    text = json.dumps(result, indent=2)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text + "\n")
    print(text if options.json else table)


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)
