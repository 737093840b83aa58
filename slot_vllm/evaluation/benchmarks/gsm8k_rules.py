"""The rules of the published GSM8K run, and the two that say what those miss."""

import re
from fractions import Fraction

from math_verify import ExprExtractionConfig, parse, verify

# It asks for the published format in words of our own.
SYSTEM_PROMPT = (
    "You are a helpful assistant that solves the user's problem. First reason about it inside "
    "<think> </think> tags, then give the final answer inside <answer> </answer> tags, and write "
    "nothing else: <think> your reasoning </think><answer> your answer </answer>."
)
MAX_NEW_TOKENS = 512

# As published: a sign and separators of thousands are no part of a number.
_PUBLISHED_NUMBER = re.compile(r"\d+\.\d+|\d+/\d+|\d+")
# As published: a final line break is forgiven.
_FORMAT = re.compile(r"<think>.*?</think><answer>.*?</answer>\n?", re.DOTALL)
_LOOSE_FORMAT = re.compile(r"\s*<think>.*?</think>\s*<answer>.*?</answer>\s*", re.DOTALL)
# A sign stands directly before its digits, or before or behind their currency. Thousands are also
# separated as LaTeX does it.
_NUMBER = re.compile(
    r"(?P<sign>[-+\u2212])?(?P<currency>\\?[$€£](?P<late>[-\u2212])?)?"
    r"(?P<digits>\d{1,3}(?:(?:,|\{,\}|\\,|,\\!)\d{3})+(?!\d)|\d+)(?P<rest>\.\d+|/0*[1-9]\d*)?"
)
# What a minus subtracts from: an operand directly before it, or one before the spaces.
_OPERAND = re.compile(r"[\w)\]}.$%!]\Z|[\d)\]}%!][ \t]+\Z")
_OPERAND_OF_LATE = re.compile(r"[\d)\]}%!]\Z")


def gold(answer: str) -> str:
    """The number of a reference answer: what stands after ``####``, or all of it."""
    return answer.split("####")[-1].strip()


def is_correct(completion: str, gold: str) -> bool:
    """As published: whether the last number of ``completion`` equals ``gold``."""
    numbers = _PUBLISHED_NUMBER.findall(completion)
    if not numbers:
        return False
    config = [ExprExtractionConfig()]
    return bool(verify(parse(gold, config), parse(numbers[-1], config)))


def is_number_correct(completion: str, gold: str) -> bool:
    """Whether the last number of ``completion``, its sign and its separators of thousands read,
    equals that of ``gold``."""
    found, wanted = _last_number(completion), _last_number(gold)
    return found is not None and found == wanted


def is_format_correct(completion: str) -> bool:
    """As published: whether ``completion`` is reasoning and answer in their tags, and nothing
    else."""
    return _FORMAT.fullmatch(completion) is not None


def is_format_loosely_correct(completion: str) -> bool:
    """As ``is_format_correct``, with white space between and around the tags."""
    return _LOOSE_FORMAT.fullmatch(completion) is not None


def _last_number(text: str) -> Fraction | None:
    found = None
    for found in _NUMBER.finditer(text):  # noqa: B007
        pass
    if found is None:
        return None
    digits = re.sub(r"\D", "", found["digits"])
    value = Fraction(digits + (found["rest"] or ""))
    before = text[: found.start()]
    if found["late"]:
        return value if _OPERAND_OF_LATE.search(before) else -value
    negative = found["sign"] not in (None, "+") and not _OPERAND.search(before)
    return -value if negative else value
