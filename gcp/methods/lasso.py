"""LASSO with a Gram matrix: the smallest penalty that leaves few enough factors nonzero, found along the exact path.

The factors are piecewise linear in the penalty (Efron, Hastie, Johnstone & Tibshirani, "Least angle regression", Annals
of Statistics 2004, section 3.1), so the path goes from one breakpoint to the next, where a factor becomes nonzero or
zero again. scikit-learn's `lars_path_gram` follows the same path with a Cholesky factor, which it solves with and
copies at every breakpoint. Here, a breakpoint is a pivot on one symmetric matrix (Goodnight, "A tutorial on the SWEEP
operator", The American Statistician 1979), and pivots are applied to it many at a time, as a product of matrices.
"""

from __future__ import annotations

from functools import cache
from typing import List, NamedTuple

import numpy as np
from scipy.linalg.blas import dgemm
from threadpoolctl import ThreadpoolController

BLOCK = 64  # pivots applied to the matrix at a time
SINGULAR = 1e-9  # of a variable's variance: where the others explain all but this, it is not added to them
SMALLEST = 1e-9  # penalty at which the path ends, relative to the largest
LONGEST = 8  # breakpoints per factor after which the path ends, should rounding keep it from going on


class Factors(NamedTuple):
    """The factors at a penalty, and the indices of all that were nonzero on the path to it, in their order there."""

    values: np.ndarray
    penalty: float
    order: List[int]


class _Swept:
    """A symmetric matrix that can be swept on one index after another.

    Before the first sweep it is the Gram matrix G. With the indices S swept, and I the others, its blocks are
    -inv(G_SS) at (S, S), G_IS inv(G_SS) at (I, S), and G_II - G_IS inv(G_SS) G_SI at (I, I). Sweeping again on an
    index undoes it.
    """

    def __init__(self, gram: np.ndarray) -> None:
        self._matrix, self._n = np.array(gram, np.float64, order="C"), 0
        self._columns, self._pivots = np.empty((BLOCK, len(gram))), np.empty(BLOCK)

    def column(self, j: int) -> np.ndarray:
        """Column j, with the sweeps that have not been applied to the matrix yet."""
        columns = self._columns[: self._n]
        return self._matrix[j] - (columns[:, j] / self._pivots[: self._n]) @ columns

    def sweep(self, j: int, column: np.ndarray) -> None:
        """Sweep on index j, given `column(j)`.

        With the pivot p, this subtracts column column' / p, except in row and column j, which become column / |p|, and
        -1 / p on the diagonal. Row and column j are written at once, and have no part in what is subtracted later.
        """
        pivot = column[j]
        self._matrix[j] = column / abs(pivot)
        self._matrix[j, j] = -1 / pivot
        self._matrix[:, j] = self._matrix[j]
        self._columns[self._n], self._pivots[self._n] = column, pivot
        self._n += 1
        self._columns[: self._n, j] = 0
        if self._n == BLOCK:
            # In place: the matrix is symmetric, and its transpose is in the layout that BLAS expects.
            dgemm(-1.0, self._columns.T / self._pivots, self._columns, 1.0, self._matrix.T, overwrite_c=True)
            self._n = 0


def lasso(gram: np.ndarray, wanted: np.ndarray, most: int) -> Factors:
    """The b that minimises b' gram b / 2 - wanted' b + penalty |b|_1, at the smallest penalty with `most` b nonzero.

    The penalty is lowered from where all factors are zero until one more than `most` would be nonzero, or until it is
    zero; then fewer are nonzero where the others could add nothing. `gram`: (n, n), positive semidefinite; `wanted`:
    (n,). All factors are zero if any number is not finite.
    """
    if not np.isfinite(gram.sum() + wanted.sum()):
        return Factors(np.zeros(len(wanted)), 0.0, [])
    with _thread_pools().limit(limits=1):  # steps are short: waiting for a second thread takes longer than it saves
        return _followed(gram, wanted, most)


@cache
def _thread_pools() -> ThreadpoolController:
    """The thread pools of this process, which takes as long to find out as a small path."""
    return ThreadpoolController()


def _followed(gram: np.ndarray, wanted: np.ndarray, most: int) -> Factors:
    """See `lasso`."""
    n = len(wanted)
    swept, variance = _Swept(gram), np.diag(gram)
    sign, values, left = np.zeros(n), np.zeros(n), np.array(wanted, np.float64)  # sign: 0 where the factor is zero
    # As the penalty falls by one: by how much nonzero factors grow, and how much less is `left` for the others.
    slope, useless, order = np.zeros(n), variance <= 0, []
    penalty = largest = np.abs(np.where(useless, 0, left)).max(initial=0.0)
    for _ in range(LONGEST * n):
        if penalty <= SMALLEST * largest:
            break
        nonzero = sign != 0
        with np.errstate(divide="ignore", invalid="ignore"):
            # What is left for a factor of zero reaches the penalty, or its negative; or a nonzero factor reaches zero.
            above = np.where(slope < 1, np.maximum(penalty - left, 0) / (1 - slope), np.inf)
            below = np.where(slope > -1, np.maximum(penalty + left, 0) / (1 + slope), np.inf)
            back = np.where(sign * slope < 0, np.maximum(sign * values, 0) / np.abs(slope), np.inf)
        falls = np.where(nonzero, back, np.where(useless, np.inf, np.minimum(above, below)))
        j = int(np.argmin(falls))
        fall = min(falls[j], penalty)
        penalty -= fall
        values[nonzero] += fall * slope[nonzero]
        left[~nonzero] -= fall * slope[~nonzero]
        if falls[j] > fall or (not nonzero[j] and nonzero.sum() == most):
            break
        column = swept.column(j)
        if nonzero[j]:
            share = slope[j] / column[j]
            slope += np.where(nonzero, -column, column) * share
            left[j], slope[j] = penalty * sign[j], sign[j] + share
            values[j] = sign[j] = 0
        elif column[j] > SINGULAR * variance[j]:
            sign[j] = 1 if above[j] <= below[j] else -1
            share = (sign[j] - slope[j]) / column[j]
            slope += np.where(nonzero, -column, column) * share
            slope[j] = share
            if j not in order:
                order.append(j)
        else:
            useless[j] = True
            continue
        swept.sweep(j, column)
    return Factors(values, float(penalty), order)
