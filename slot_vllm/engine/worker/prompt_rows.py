"""Where the hidden states of a prompt come from: each step computes a part of it."""

from collections import Counter
from collections.abc import Callable

from torch import Tensor

from slot_vllm.engine.worker.batch import BatchView
from slot_vllm.engine.worker.failure import Failure
from slot_vllm.engine.worker.prompt_buffers import PromptBuffers
from slot_vllm.engine.worker.request import SlotRequest, Status
from slot_vllm.optim.optimize import Learned


class PromptRows:
    """From the KV cache, where the batch can be read from there; else from ``buffers``.

    not_written: why the current step's hidden states are not in the KV cache, if they are not.
    """

    def __init__(self, buffers: PromptBuffers, counters: Counter[str]) -> None:
        self._buffers = buffers
        self._counters = counters
        self.not_written: Failure | None = None

    def take(
        self, request: SlotRequest, hidden_states: Tensor, batch: BatchView, i: int
    ) -> Callable[[], Tensor] | None:
        """A way to the rows that the i-th request learns from, if its prompt is now complete."""
        length, skipped, start = len(request.tokens), request.skipped, int(batch.starts[i])
        first = int(batch.query_start[i])
        rows = hidden_states[first : int(batch.query_start[i + 1])][: length - start]
        stop = start + rows.shape[0]
        self._counters["hidden_rows_computed"] += rows.shape[0]
        read = batch.read
        if read is None:
            taken = self._keep(request, rows, start)
            return None if taken is None else lambda: taken
        # The V1 runner is not told of all preemptions; one that starts again may start at a hit.
        known = request.seen if start >= request.seen else 0
        self._counters["hidden_rows_cached"] += start - known
        request.seen = stop
        if start <= skipped and stop == length:
            return lambda: rows[skipped - start :]
        if self.not_written is not None and stop > skipped:
            request.failure = self.not_written
            return None
        if stop < length:
            return None
        self._buffers.open()
        return lambda: read(i, skipped, length)

    def _keep(self, request: SlotRequest, rows: Tensor, start: int) -> Tensor | None:
        """Keep those of this step's rows that it learns from; all of them once they are there."""
        length, skipped = len(request.tokens), request.skipped
        stop = start + rows.shape[0]
        if start > request.filled:
            raise RuntimeError(
                f"request {request.external_id}: hidden states {request.filled} to {start} of the "
                "prompt never came; was its prefix read from a cache or loaded?"
            )
        rows = rows[max(0, skipped - start) :]
        if start <= skipped and stop == length:
            self.release(request)
            return rows
        if len(rows):
            if request.hidden is None:
                request.hidden = self._buffers.allocate(length - skipped, rows.shape[1], rows.dtype)
            request.hidden[stop - len(rows) - skipped : stop - skipped].copy_(rows)
        # vLLM promises the names of preempted requests to the V2 runner only: one that starts again
        # unannounced overwrites equal rows.
        request.filled = max(request.filled, stop)
        return request.hidden if request.filled == length else None

    def finish(
        self,
        request: SlotRequest,
        status: Status,
        learned: Learned | None = None,
        reason: str | None = None,
    ) -> None:
        """Its delta is known, or it gets none any more: its rows go."""
        request.status, request.learned, request.reason = status, learned, reason
        self.release(request)

    def restart(self, request: SlotRequest) -> None:
        """It was preempted and starts again with its first token; the room is for others."""
        self.release(request)
        request.filled = request.seen = 0

    def release(self, request: SlotRequest) -> None:
        hidden, request.hidden = request.hidden, None
        if hidden is not None:
            self._buffers.release(hidden)
