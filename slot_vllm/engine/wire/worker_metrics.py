"""What a worker's RPC ``slot_metrics`` gives."""

from typing import TypedDict


class HistogramSnapshot(TypedDict):
    """bounds: upper, inclusive, ascending. counts: per bound, not cumulated, and one more for what
    lies above all. total: the sum of the values, None where it is not kept."""

    bounds: list[float]
    counts: list[int]
    total: float | None


class WorkerMetrics(TypedDict):
    """stats: as ``slot_stats``. histograms: as ``Statistics.histograms``."""

    stats: dict[str, int | float]
    histograms: dict[str, HistogramSnapshot]
