"""What tensor parallelism adds to learning one delta, beside what it adds to the prompt's prefill.

Counts, not times: of each rank, for one prompt. docs/scaling.md has them for a 70B model.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """hidden: d. vocabulary: V. parameters: those that a token is multiplied with, head included.
    itemsize: bytes of a weight, and of a hidden state."""

    hidden: int
    vocabulary: int
    layers: int
    parameters: int
    itemsize: int


@dataclass(frozen=True)
class Work:
    """Of one rank. received: bytes from the other ranks. operations: of matrix products, a
    multiplication and an addition being two. memory: bytes that pass between it and its memory,
    of W and of Z0 alone."""

    collectives: int
    received: int
    operations: int
    memory: int


def learning(model: ModelShape, ranks: int, rows: int, steps: int) -> Work:
    """T steps of one prompt with n rows that stay in the workspace, in one chunk.

    Per step an all-gather of 2 n floats and one of d; the rows' product with V / ranks columns,
    once; W read for it, for T gradients and for T - 1 shifts; Z0 written once and then read twice a
    step, but once in the first.
    """
    given = 4 * steps * (2 * rows + model.hidden)
    columns = -(-model.vocabulary // ranks)
    weight = columns * model.hidden * model.itemsize
    logits = columns * rows * model.itemsize
    return Work(
        collectives=2 * steps,
        received=(ranks - 1) * given,
        operations=2 * rows * columns * model.hidden,
        memory=2 * steps * weight + 2 * steps * logits,
    )


def prefill(model: ModelShape, ranks: int, tokens: int) -> Work:
    """The forward pass of one prompt, attention's own products left out. Two all-reduces of n d
    values per layer and one for the embeddings; a ring all-reduce receives 2 (R - 1) / R of its
    size. memory: each weight once."""
    collectives = 2 * model.layers + 1
    reduced = collectives * tokens * model.hidden * model.itemsize
    return Work(
        collectives=collectives,
        received=2 * reduced * (ranks - 1) // ranks,
        operations=2 * tokens * model.parameters // ranks,
        memory=model.parameters * model.itemsize // ranks,
    )
