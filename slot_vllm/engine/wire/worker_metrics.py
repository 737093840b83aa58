"""What a worker's RPC ``slot_metrics`` gives."""

from typing import TypedDict

from slot_vllm.engine.wire.histogram import HistogramSnapshot


class WorkerMetrics(TypedDict):
    """stats: as ``slot_stats``. histograms: as ``Statistics.histograms``."""

    stats: dict[str, int | float]
    histograms: dict[str, HistogramSnapshot]
