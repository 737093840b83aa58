"""How answers end and read: the shares of a problem's answers that are cut off and that loop."""

from collections.abc import Sequence

from slot_vllm.evaluation.record import CUT_OFF, LOOPS, Sample

MORE_THAN = 60
DISTINCT = 0.25


def conduct(answers: Sequence[Sample]) -> dict[str, float]:
    """Of one problem's answers, by name; less is better."""
    return {
        CUT_OFF: sum(answer.cut_off for answer in answers) / len(answers),
        LOOPS: sum(loops(answer.completion) for answer in answers) / len(answers),
    }


def loops(text: str) -> bool:
    """Whether a text has over 60 words of which fewer than a quarter are distinct.

    Words are what white space separates.
    """
    words = text.split()
    return len(words) > MORE_THAN and len(set(words)) < DISTINCT * len(words)
