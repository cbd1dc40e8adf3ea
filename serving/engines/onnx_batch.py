"""A decoder graph of onnxruntime-genai's builder, run by ONNX Runtime for several answers at a
time.

Keys and values of all answers lie in arrays with a row per answer, which the graph reads and
extends in place. The rows in use are kept together, the one whose prompt is being read last: where
an answer leaves, another one moves in.

onnxruntime-genai 0.18 itself batches continuously for CUDA alone; on a CPU its engine takes up new
requests when all of the batch before have ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

NUMBERS: Final = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
KNOWN: Final = frozenset({"input_ids", "attention_mask", "position_ids"})
STATE: Final = "past_key_values."
RESULT: Final = "present."


@dataclass
class _Row:
    """An answer and how many tokens of it are in the cache."""

    key: int
    length: int = 0


class OnnxDecoder:
    """A session of onnxruntime with room for `slots` answers."""

    def __init__(self, session: Any, *, slots: int, context: int, head_size: int) -> None:
        self._session = session
        self._inputs = {node.name for node in session.get_inputs()}
        self._cache = _cache(session, slots, context, head_size)
        self._bindings: dict[tuple[int, int], Any] = {}
        self._rows: list[_Row] = []

    def join(self, key: int) -> None:
        """Give the next row to this answer."""
        self._rows.append(_Row(key))

    def leave(self, key: int) -> None:
        """Free the row, and close the gap by the fewest moves that leave the newest row last."""
        position, last = self._position_of(key), len(self._rows) - 1
        if position < last - 1:
            self._move(last - 1, position)
            position = last - 1
        if position < last:
            self._move(last, position)
        self._rows.pop()

    def read(self, key: int, tokens: Sequence[int]) -> Any:
        """Return the logits after each of the tokens."""
        position = self._position_of(key)
        row = self._rows[position]
        row.length += len(tokens)
        return self._run(position, position + 1, np.array([tokens]), [row.length])[0]

    def step(self, keys: Sequence[int], tokens: Sequence[int]) -> Any:
        """Return the logits after one more token of each: of all rows but the one being read."""
        next_tokens = dict(zip(keys, tokens, strict=True))
        # A row whose prompt is being read is the last: see `leave`.
        rows = self._rows[: len(next_tokens)]
        for row in rows:
            row.length += 1
        ids = np.array([[next_tokens[row.key]] for row in rows])
        logits = self._run(0, len(rows), ids, [row.length for row in rows])[:, -1]
        positions = {row.key: position for position, row in enumerate(rows)}
        return logits[[positions[key] for key in keys]]

    def _position_of(self, key: int) -> int:
        return next(position for position, row in enumerate(self._rows) if row.key == key)

    def _move(self, source: int, target: int) -> None:
        row = self._rows[target] = self._rows[source]
        for array in self._cache.values():
            array[target, :, : row.length] = array[source, :, : row.length]

    def _run(self, begin: int, end: int, ids: Any, lengths: Sequence[int]) -> Any:
        """Return the logits of `ids` in rows `begin` to `end`, which then have these lengths."""
        binding = self._binding(begin, end)
        positions = np.arange(max(lengths))
        mask = (positions[None, :] < np.array(lengths)[:, None]).astype(np.int64)
        binding.bind_cpu_input("input_ids", ids.astype(np.int64))
        binding.bind_cpu_input("attention_mask", mask)
        if "position_ids" in self._inputs:
            steps = np.arange(ids.shape[1]) - ids.shape[1]
            binding.bind_cpu_input(
                "position_ids", np.array(lengths, np.int64)[:, None] + steps[None, :]
            )
        binding.bind_output("logits", "cpu")
        self._session.run_with_iobinding(binding)
        # The graph may compute in float16; whoever draws tokens is promised float32.
        return binding.get_outputs()[0].numpy().astype(np.float32, copy=False)

    def _binding(self, begin: int, end: int) -> Any:
        """Return rows `begin` to `end` of the cache, bound as what the graph reads and, in the same
        place, writes.
        """
        import onnxruntime

        # Kept: the arrays stay where they are for as long as the server runs.
        if (begin, end) not in self._bindings:
            binding = self._bindings[begin, end] = self._session.io_binding()
            binding.bind_output("logits", "cpu")
            for name, array in self._cache.items():
                # On a CPU it shares the array's memory, which has to be contiguous: whole rows are.
                value = onnxruntime.OrtValue.ortvalue_from_numpy(array[begin:end])
                binding.bind_ortvalue_input(name, value)
                binding.bind_ortvalue_output(name.replace(STATE, RESULT), value)
        return self._bindings[begin, end]


def unknown_inputs(session: Any) -> list[str]:
    """Return the inputs of a graph that this module does not know to feed."""
    return sorted(
        node.name
        for node in session.get_inputs()
        if node.name not in KNOWN and STATE not in node.name
    )


def _cache(session: Any, slots: int, context: int, head_size: int) -> dict[str, Any]:
    """Return an array for all keys, and one for all values, of every layer; memory is taken as it
    is written to.
    """
    return {
        node.name: np.zeros((slots, node.shape[1], context, head_size), NUMBERS[node.type])
        for node in session.get_inputs()
        if STATE in node.name
    }
