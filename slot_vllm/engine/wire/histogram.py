"""A histogram of values that the host has."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import TypedDict


class HistogramSnapshot(TypedDict):
    """bounds: upper, inclusive, ascending. counts: per bound, not cumulated, and one more for what
    lies above all. total: the sum of the values, None where it is not kept."""

    bounds: list[float]
    counts: list[int]
    total: float | None


class Histogram:
    """Counts values by upper bounds, as Prometheus does."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = list(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def snapshot(self) -> HistogramSnapshot:
        return {"bounds": list(self._bounds), "counts": list(self._counts), "total": self._total}
