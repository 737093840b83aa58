"""How answers end and read: the shares of a problem's answers that are cut off and that loop."""

from collections.abc import Sequence

from slot_vllm.evaluation.looping import loops
from slot_vllm.evaluation.record import CUT_OFF, LOOPS, Sample


def conduct(answers: Sequence[Sample]) -> dict[str, float]:
    """Of one problem's answers, by name; less is better."""
    return {
        CUT_OFF: sum(answer.cut_off for answer in answers) / len(answers),
        LOOPS: sum(loops(answer.completion) for answer in answers) / len(answers),
    }
