"""Controls: the simple things that an arm does in SLOT's place, or besides it."""

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from slot_vllm.evaluation.run_settings import Strict
from slot_vllm.evaluation.unicode_text import blank
from slot_vllm.setting import Number


def _not_blank(text: str) -> str:
    if blank(text):
        raise ValueError("a text that is not blank is required")
    return text


Text = Annotated[str, AfterValidator(_not_blank)]


class Example(Strict):
    """A worked example: a turn of the user and the assistant's answer to it."""

    problem: Text
    answer: Text


class Bias(Strict):
    """The prompt's own token frequencies in closed form, as a bias on the logits.

    Token v is c_v of the n - 1 targets x_2, ..., x_n of the prompt; the model itself predicts it
    with the mean probability m_v there. Dirichlet smoothing of the frequencies towards the model's
    prediction, p_v = (c_v + pseudo_count m_v) / (n - 1 + pseudo_count), gives log(p_v / m_v), and
    relative to the tokens that the prompt lacks, strength * log(1 + c_v / (pseudo_count m_v)).
    """

    strength: Annotated[Number, Field(gt=0)]
    pseudo_count: Annotated[Number, Field(gt=0)]


class Control(Strict):
    """One of these or several at once.

    append: a text put behind the user's turn, after a blank line.
    examples: turns before the question.
    temperature: in place of the run's.
    regex: what answers have to match, by vLLM's structured output.
    bias: on the logits of the prompt's own tokens, what ``append`` and ``examples`` add included.
    """

    append: Text | None = None
    examples: Annotated[list[Example], Field(min_length=1)] | None = None
    temperature: Annotated[Number, Field(ge=0)] | None = None
    regex: Annotated[str, Field(min_length=1)] | None = None
    bias: Bias | None = None

    @model_validator(mode="after")
    def _some(self) -> "Control":
        if not self.kinds:
            allowed = ", ".join(type(self).model_fields)
            raise ValueError(f"it is empty; allowed: one or several of {allowed}")
        return self

    @property
    def kinds(self) -> list[str]:
        """The names of what it does."""
        return [key for key in type(self).model_fields if getattr(self, key) is not None]

    @property
    def words(self) -> str:
        """For tables."""
        said = {"temperature": f"temperature {self.temperature}"}
        return " + ".join(said.get(kind, kind) for kind in self.kinds)
