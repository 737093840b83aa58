"""``python -m slot_vllm.bench COMMAND``, also ``slot-vllm bench COMMAND``."""

import argparse
from collections.abc import Sequence

from slot_vllm.bench import burst, optimize, plot, table

EXAMPLES = """examples:
  slot-vllm bench optimize --tokens 256 --steps 5
  slot-vllm bench burst --help
  slot-vllm bench table logs/bench/*.json
"""


def main(arguments: Sequence[str] | None = None, program: str = "python -m slot_vllm.bench") -> int:
    parser = argparse.ArgumentParser(
        prog=program,
        description="What SLOT costs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for command in (optimize, burst, table, plot):
        # A command's name is its module's, and what it does is that one's first sentence.
        name, said = command.__name__.rpartition(".")[2], str(command.__doc__).partition(":")[2]
        own = commands.add_parser(name, help=said.split(".")[0].strip())
        command.add_arguments(own)
        own.set_defaults(run=command.run)
    options = parser.parse_args(arguments)
    result: int = options.run(options)
    return result


if __name__ == "__main__":
    raise SystemExit(main())
