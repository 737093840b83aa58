"""Which tokens of a prompt are learned from, where a worker cannot tell.

What ``slot_loss_tokens`` means where only the tokenizer can tell:

``text``: all but special tokens. A role, or several: the turns of the tokenizer's chat template
that are theirs (``chat_turns``).
"""

import itertools
from collections import deque
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from slot_vllm.chat_turns import ChatTurns, UndeterminedError

# First and last token + 1 of what counts.
Span = tuple[int, int]


class LossTokens:
    """tokenizer: of transformers, or None where an engine has none."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._turns = ChatTurns(tokenizer)

    def spans(self, tokens: Sequence[int], wanted: str | tuple[str, ...]) -> list[Span]:
        """Where the tokens that count stand. wanted: ``text``, a role or several. Raises
        UndeterminedError."""
        if self._tokenizer is None:
            raise UndeterminedError("the engine has no tokenizer (skip_tokenizer_init)")
        if wanted == "text":
            return _joined([token not in self._special for token in tokens])
        roles = (wanted,) if isinstance(wanted, str) else wanted
        text, places = self._read(list(tokens))
        turns = deque(self._turns.of(text, roles))
        counts = []
        for start, stop in places:
            while turns and turns[0].stop <= start:
                turns.popleft()
            counts.append(bool(turns) and stop > turns[0].start)
        return _joined(counts)

    @cached_property
    def _special(self) -> set[int]:
        added = getattr(self._tokenizer, "added_tokens_decoder", {})
        # Those that have no name of their own, such as a template's role marks, are only there.
        marks = {token for token, text in added.items() if getattr(text, "special", False)}
        return marks | set(self._tokenizer.all_special_ids)

    def _read(self, tokens: list[int]) -> tuple[str, list[tuple[int, int]]]:
        """The prompt's text, and of each token its first and last character + 1 there."""
        if not getattr(self._tokenizer, "is_fast", False):
            raise UndeterminedError("the model's tokenizer does not say where a token stands")
        text = self._tokenizer.decode(
            tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        read = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        if read["input_ids"] != tokens:
            raise UndeterminedError("the prompt's tokens are not those of its text")
        return text, read["offset_mapping"]


def _joined(counts: Sequence[bool]) -> list[Span]:
    """Runs of what counts."""
    spans = []
    for counted, run in itertools.groupby(enumerate(counts), key=lambda pair: pair[1]):
        if counted:
            places = [i for i, _ in run]
            spans.append((places[0], places[-1] + 1))
    return spans


def without(spans: Sequence[Span], others: Sequence[Span], length: int) -> list[Span]:
    """What ``spans``, of a prompt of ``length`` tokens, have and ``others`` have not."""
    counts = flags(spans, length)
    for start, stop in others:
        counts[start:stop] = [False] * (stop - start)
    return _joined(counts)


def flags(spans: Sequence[Sequence[int]], length: int) -> list[bool]:
    """One per token, whether a span has it."""
    counts = [False] * length
    for start, stop in spans:
        counts[start:stop] = [True] * (stop - start)
    return counts
