"""``python -m slot_vllm.bench COMMAND``."""

import argparse
from collections.abc import Sequence

from slot_vllm.bench import apply, burst, optimize, plot, prefix, table


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m slot_vllm.bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in (optimize, apply, prefix, burst, table, plot):
        command.add_command(commands)
    options = parser.parse_args(arguments)
    result: int = options.run(options)
    return result


if __name__ == "__main__":
    raise SystemExit(main())
