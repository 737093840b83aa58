"""How far the answers of a run are."""

from collections.abc import Sequence

from slot_vllm.evaluation.generation import Request
from slot_vllm.evaluation.progress import Progress, time_left
from slot_vllm.evaluation.time_left import TimeLeft


class Answering(Progress):
    """How many requests are finished and how many run, tokens per second, and the time left
    (``TimeLeft`` has the rule). done: how many were answered before."""

    def __init__(self, label: str, requests: Sequence[Request], done: int = 0) -> None:
        self._total = done + len(requests)
        self._done = done
        limits = {one.id: one.sampling["n"] * one.sampling["max_tokens"] for one in requests}
        self._left = TimeLeft(limits)
        super().__init__(label, self._total, done)

    def add_tokens(self, request_id: str, count: int) -> None:
        """The engine's ``OnTokens``."""
        self._left.add(request_id, count)
        self.show(self._done, self._say, last=False)

    def finish(self, request_id: str) -> None:
        self._left.finish(request_id)
        self._done += 1
        self.show(self._done, self._say, last=self._done == self._total)

    def _say(self) -> str:
        said = f"{self._done}/{self._total} finished"
        rate = f"{self._left.tokens_per_second:.0f} tok/s"
        if self._done == self._total:
            return f"{said}, {rate}"
        return f"{said}, {self._left.running} running, {rate}, {time_left(self._left.seconds())}"
