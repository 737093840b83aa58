"""Throughput and latencies of loops whose times are known."""

import pytest

from slot_vllm.bench.closed_loop import Loop, Served
from slot_vllm.bench.latency import Figures, figures, summarize


def test_figures_of_a_loop() -> None:
    first = Served(began=10.0, outputs=[10.5, 10.6, 10.8], tokens=3)
    second = Served(began=10.0, outputs=[11.5, 11.6, 11.8], tokens=3)
    found = figures(Loop([first, second], seconds=2.0))
    assert found.throughput == 3.0
    assert found.ttft_p50 == pytest.approx(1.0)
    assert found.ttft_p99 == pytest.approx(1.49)
    assert found.itl_p50 == pytest.approx(0.15)
    assert found.itl_p99 == pytest.approx(0.2)


def test_ratios_are_of_the_same_round() -> None:
    def one(value: float) -> Figures:
        return Figures(throughput=value, ttft_p50=1, ttft_p99=1, itl_p50=1, itl_p99=1)

    # The medians are equal, the rounds are not.
    found = summarize([one(1), one(2), one(4)], [one(2), one(1), one(2)])
    assert found.off["throughput"].median == found.on["throughput"].median == 2
    ratio = found.ratio["throughput"]
    assert (ratio.median, ratio.lowest, ratio.highest) == (0.5, 0.5, 2)
    assert found.ratio["itl_p99"].median == 1
