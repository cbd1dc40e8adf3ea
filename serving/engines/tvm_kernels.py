"""The multiplication that a language model spends its time in, written for TVM. Runs inside the
engine's environment.

What TVM makes of a matrix product by itself adds up one number after another, each waiting for the
one before: on one core of an AMD EPYC 0.6 GFLOP/s where this makes 60 to 95 for eight rows or more,
as many as OpenBLAS.
"""

from typing import Any, Final

import numpy as np
from tvm.script import tirx as T

LANES: Final = 32
"""Columns that are computed side by side, in the processor's vectors."""
ROWS: Final = 4
"""Rows that share what is read of the weights. LANES and ROWS together fill the registers of AVX2.
"""


def packed(weight: Any) -> Any:
    """Return a weight of shape (columns, width), as models keep it, in the order in which `dense`
    reads it.

    Its shape is (columns / LANES rounded up, width, LANES).
    """
    columns, width = weight.shape
    padded = np.pad(weight, ((0, -columns % LANES), (0, 0)))
    return np.ascontiguousarray(padded.reshape(-1, LANES, width).transpose(0, 2, 1))


def dense(width: int, columns: int) -> Any:
    """Return the product of rows of `width` numbers with a packed weight: rows of `columns`.

    All of them are float32.
    """
    groups = -(-columns // LANES)

    @T.prim_func(s_tir=True, private=True)  # type: ignore[untyped-decorator]  # tvm has no types
    def multiply(x: T.handle, w: T.handle, y: T.handle) -> None:
        # Scheduled: the loops below are as they are to run, and no pass is to arrange them anew.
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True})
        rows = T.int64()
        inputs = T.match_buffer(x, (rows, width), "float32")
        weight = T.match_buffer(w, (groups, width, LANES), "float32")
        result = T.match_buffer(y, (rows, columns), "float32")
        for group in T.parallel(groups):
            with T.sblock("group"):
                T.reads()
                T.writes()
                total = T.sblock_alloc_buffer((ROWS, LANES), "float32", scope="local")
                for block in T.serial(rows // ROWS):
                    for row in T.unroll(ROWS):
                        for lane in T.vectorized(LANES):
                            total[row, lane] = T.float32(0)
                    for inner in T.serial(width):
                        for row in T.unroll(ROWS):
                            for lane in T.vectorized(LANES):
                                total[row, lane] = (
                                    total[row, lane]
                                    + inputs[block * ROWS + row, inner] * weight[group, inner, lane]
                                )
                    for row in T.unroll(ROWS):
                        for lane in T.vectorized(LANES):
                            if group * LANES + lane < columns:
                                result[block * ROWS + row, group * LANES + lane] = total[row, lane]
                for rest in T.serial(rows % ROWS):
                    for lane in T.vectorized(LANES):
                        total[0, lane] = T.float32(0)
                    for inner in T.serial(width):
                        for lane in T.vectorized(LANES):
                            total[0, lane] = (
                                total[0, lane]
                                + inputs[rows // ROWS * ROWS + rest, inner]
                                * weight[group, inner, lane]
                            )
                    for lane in T.vectorized(LANES):
                        if group * LANES + lane < columns:
                            result[rows // ROWS * ROWS + rest, group * LANES + lane] = total[
                                0, lane
                            ]

    return multiply
