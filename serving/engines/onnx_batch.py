"""Continuous batching over the decoder graphs that onnxruntime-genai's builder writes.

Keys and values of all answers under way lie in arrays with a row per answer, which the graph reads and extends in
place. One thread runs the graph: a piece of the newest prompt, then one more token of every answer, and so on. An
answer joins and leaves between two steps. The rows in use are kept together: the last one moves to where one was left.

onnxruntime-genai 0.18 itself batches continuously for CUDA alone; on a CPU its engine takes up new requests
when all of the batch before have ended.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from serving.shim.draw import Drawer, log_softmax
from serving.shim.protocol import Sampling, Token, TokenStream

NUMBERS: Final = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
KNOWN: Final = frozenset({"input_ids", "attention_mask", "position_ids"})
STATE: Final = "past_key_values."
RESULT: Final = "present."


@dataclass(eq=False)
class _Row:
    """One answer under way."""

    tokens: list[int]
    """The prompt; where log-probabilities are asked for, the completion as well."""
    drawer: Drawer | None = None
    """None: log-probabilities are asked for, nothing is generated."""
    left: int = 0
    """Tokens that may still be generated."""
    scored_from: int = 0
    length: int = 0
    """Tokens whose keys and values are in the cache."""
    last: int = 0
    """The token generated last, which is not in the cache yet."""
    logprobs: list[float] = field(default_factory=list)
    out: queue.SimpleQueue[Token | Exception | None] = field(default_factory=queue.SimpleQueue)
    gone: bool = False


class Batcher:
    """Runs a session of onnxruntime for up to `slots` answers at a time."""

    def __init__(
        self, session: Any, *, slots: int, context: int, chunk: int, head_size: int, ends: frozenset[int]
    ) -> None:
        self._session = session
        self._slots, self._chunk, self._ends = slots, chunk, ends
        self._inputs = {node.name for node in session.get_inputs()}
        self._cache = _cache(session, slots, context, head_size)
        self._bindings: dict[tuple[int, int], Any] = {}
        self._rows: list[_Row] = []
        self._filling = False
        """Whether the last row's prompt is being read."""
        self._arrivals: queue.SimpleQueue[_Row] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True, name="batch").start()

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> TokenStream:
        """Tokens as they come; closing it frees the row."""
        row = _Row(list(prompt), Drawer(sampling), sampling.max_tokens)
        self._arrivals.put(row)
        try:
            while (item := row.out.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            row.gone = True

    def logprobs(self, prompt: Sequence[int], completion: Sequence[int]) -> list[float]:
        """Natural-log probability of every completion token."""
        row = _Row([*prompt, *completion], scored_from=len(prompt))
        self._arrivals.put(row)
        if isinstance(failure := row.out.get(), Exception):
            raise failure
        return row.logprobs

    def _work(self) -> None:
        while True:
            self._admit()
            try:
                if self._filling:
                    self._fill()
                if self._decoding:
                    self._step()
            except Exception as exc:  # whatever the library raises ends these answers, and not the server
                for row in self._rows:
                    row.out.put(exc)
                self._rows.clear()
                self._filling = False

    @property
    def _decoding(self) -> int:
        return len(self._rows) - self._filling

    def _admit(self) -> None:
        """Drop who has left, take in who has come; wait where there is nothing to do."""
        for row in [row for row in self._rows if row.gone]:
            self._remove(row)
        while not self._filling and len(self._rows) < self._slots:
            try:
                row = self._arrivals.get(block=not self._rows)
            except queue.Empty:
                return
            if not row.gone:
                self._rows.append(row)
                self._filling = True

    def _fill(self) -> None:
        """Read the next piece of the newest prompt."""
        place, row = len(self._rows) - 1, self._rows[-1]
        piece = row.tokens[row.length : row.length + self._chunk]
        logits = self._run(place, place + 1, np.array([piece]), [row.length + len(piece)])[0]
        row.length += len(piece)
        if row.drawer is None:
            self._score(row, logits, row.length - len(piece))
        if row.length < len(row.tokens):
            return
        self._filling = False
        if row.drawer is None:
            row.out.put(None)
            self._remove(row)
        else:
            self._tell(row, logits[-1])

    def _score(self, row: _Row, logits: Any, begin: int) -> None:
        """Keep what the logits from position `begin` on say of the tokens after each."""
        first = max(begin, row.scored_from - 1)
        followed = row.tokens[first + 1 : begin + len(logits) + 1]
        if followed:
            known = log_softmax(logits[first - begin : first - begin + len(followed)].astype(np.float64))
            row.logprobs += [float(known[place, token]) for place, token in enumerate(followed)]

    def _step(self) -> None:
        """One more token of every answer."""
        rows = self._rows[: self._decoding]
        lengths = [row.length + 1 for row in rows]
        logits = self._run(0, len(rows), np.array([[row.last] for row in rows]), lengths)
        # First all of them: one that leaves makes another move, with everything that is in its row.
        for row in rows:
            row.length += 1
        for row, row_logits in zip(rows, logits[:, -1], strict=True):
            self._tell(row, row_logits)

    def _tell(self, row: _Row, logits: Any) -> None:
        """Draw a token and hand it out; the last one ends the answer."""
        assert row.drawer is not None
        token = row.drawer.draw(logits)
        row.last, row.left = token.id, row.left - 1
        row.out.put(token)
        if row.left <= 0 or token.id in self._ends:
            row.out.put(None)
            self._remove(row)

    def _remove(self, row: _Row) -> None:
        """Close the gap: the last row that generates moves into it, and the one that reads follows."""
        place, last = self._rows.index(row), self._decoding - 1
        if place > last:
            self._filling = False
            self._rows.pop()
            return
        self._move(last, place)
        if self._filling:
            self._move(last + 1, last)
        self._rows.pop()

    def _move(self, source: int, target: int) -> None:
        if source == target:
            return
        row = self._rows[target] = self._rows[source]
        for array in self._cache.values():
            array[target, :, : row.length] = array[source, :, : row.length]

    def _run(self, begin: int, end: int, ids: Any, lengths: Sequence[int]) -> Any:
        """Logits of `ids` in rows `begin` to `end`, each of which is then as long as `lengths` say."""
        binding = self._binding(begin, end)
        places = np.arange(max(lengths))
        mask = (places[None, :] < np.array(lengths)[:, None]).astype(np.int64)
        binding.bind_cpu_input("input_ids", ids.astype(np.int64))
        binding.bind_cpu_input("attention_mask", mask)
        if "position_ids" in self._inputs:
            steps = np.arange(ids.shape[1]) - ids.shape[1]
            binding.bind_cpu_input("position_ids", np.array(lengths, np.int64)[:, None] + steps[None, :])
        binding.bind_output("logits", "cpu")
        self._session.run_with_iobinding(binding)
        return binding.get_outputs()[0].numpy().astype(np.float32, copy=False)

    def _binding(self, begin: int, end: int) -> Any:
        """Rows `begin` to `end` of the cache as what the graph reads and, in the same place, writes."""
        import onnxruntime

        if (begin, end) not in self._bindings:
            binding = self._bindings[begin, end] = self._session.io_binding()
            binding.bind_output("logits", "cpu")
            for name, array in self._cache.items():
                value = onnxruntime.OrtValue.ortvalue_from_numpy(array[begin:end])
                binding.bind_ortvalue_input(name, value)
                binding.bind_ortvalue_output(name.replace(STATE, RESULT), value)
        return self._bindings[begin, end]


def unknown_inputs(session: Any) -> list[str]:
    """Inputs of a graph that this module does not know to feed."""
    return sorted(node.name for node in session.get_inputs() if node.name not in KNOWN and STATE not in node.name)


def _cache(session: Any, slots: int, context: int, head_size: int) -> dict[str, Any]:
    """An array for all keys, and one for all values, of every layer; memory is taken as it is written to."""
    return {
        node.name: np.zeros((slots, node.shape[1], context, head_size), NUMBERS[node.type])
        for node in session.get_inputs()
        if STATE in node.name
    }
