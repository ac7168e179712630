"""The ScaleRL law, and its linear form that the whole forecaster rests on.

    R(C) = R0 + (A - R0) / (1 + (C_mid / C)^B)                    (ScaleRL, Eq. 1)
         = R0 (1 - s) + A s,   s = sigmoid(B (ln C - ln C_mid))

For a fixed shape (B, C_mid) the law is linear in beta = (R0, A). A known change-point c adds two more linear
regressors, a level jump d and an extra gain h:

    + 1(C > c) [ d + h (s(C) - s(c)) ]

Invariant: everything here works in log compute `u = ln C`; `u = -inf` (compute 0) means no progress at all, so an
evaluation there measures R0.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

EXPONENT_LIMIT = 60.0
"""Beyond this the sigmoid is 0 or 1 to double precision."""

FROM_ORIGIN = math.log(2.0)
"""Log compute that counts as passed between an evaluation at compute 0 and the first one after it: a first spacing d
after the start would be ln 2d - ln d on an axis shifted by d."""

SUPPORT_R0 = (-0.02, 1.0)
SUPPORT_A = (0.0, 1.0)
SUPPORT_LOSS = 0.05
"""Largest drop `R0 - A` that still counts as the law."""


def progress(u: float, b: Array, log_mid: Array) -> Array:
    """Share `s` of the gain `A - R0` reached at log compute `u`, for every shape; same form as `b`."""
    exponent = np.clip(b * (u - log_mid), -EXPONENT_LIMIT, EXPONENT_LIMIT)
    s: Array = 1.0 / (1.0 + np.exp(-exponent))
    return s


def elapsed(last: float | None, u: float) -> float:
    """Log compute that the random walk has gone from the point at `last` (None: no point yet) to `u`."""
    if last is None or u <= last:
        return 0.0
    return FROM_ORIGIN if last == -math.inf else u - last


def regressors(u: float, b: Array, log_mid: Array, changes: Sequence[float]) -> Array:
    """Rows `(1 - s, s, 1(u > c1), (s - s(c1)) 1(u > c1), ...)` at log compute `u`: shape (2 + 2 J, cells)."""
    x = np.zeros((2 + 2 * len(changes), *b.shape))
    x[1] = progress(u, b, log_mid)
    x[0] = 1.0 - x[1]
    for j, change in enumerate(changes):
        if u > change:
            x[2 + 2 * j] = 1.0
            x[3 + 2 * j] = x[1] - progress(change, b, log_mid)
    return x


def supported(r0: Array, a: Array) -> NDArray[np.bool_]:
    """Which pairs (R0, A) the truncated prior allows."""
    return (
        (r0 >= SUPPORT_R0[0])
        & (r0 <= SUPPORT_R0[1])
        & (a >= SUPPORT_A[0])
        & (a <= SUPPORT_A[1])
        & (a >= r0 - SUPPORT_LOSS)
    )
