"""CP: the channels that LASSO selects when few inputs of the next layer have to reproduce its outputs.

He, Zhang & Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, eqs. 2 to 5: one factor per
channel, whose contribution has weights of norm 1, and a penalty on the factors that is raised until few enough are
nonzero; then least squares for the weights. With `shortcuts`, the last layer of a residual branch makes up for the
error of its shortcut (section 3.3). Different here: the whole path of the penalty is followed at once (least angle
regression on the Gram matrix), where the paper raises it step by step.
"""

from __future__ import annotations

import warnings

import numpy as np
from pydantic import Field
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import lars_path_gram

from gcp.methods.base import METHODS, Outcome, Problem, Run
from gcp.methods.layerwise import Contributions, LayerwiseOptions, prune_layerwise


class CpOptions(LayerwiseOptions):
    """Which channels may be removed, what they are judged by, and which outputs layers are fitted to."""

    shortcuts: bool = Field(
        False,
        description="whether the last layer of a residual branch makes up for what its shortcut has lost, as published",
    )

    def corrects_shortcuts(self) -> bool:
        """See `LayerwiseOptions`."""
        return self.shortcuts

    def label(self, cost: str) -> str:
        """The method's name in the literature."""
        return "CP"


@METHODS.register("cp", CpOptions)
def cp(problem: Problem, options: CpOptions, run: Run) -> Outcome:
    """Prune layer by layer, with channels selected by CP's LASSO."""
    return prune_layerwise(problem, options, by_lasso, run)


def by_lasso(contributions: Contributions, width: int) -> np.ndarray:
    """The indices of `width` channels: those left by the smallest penalty that leaves at most so many nonzero factors.

    If several factors become zero together, so that fewer are left, the channels that the path adds next fill the gap.
    """
    norms = np.where(contributions.norms > 0, contributions.norms, 1.0)
    wanted, n = contributions.wanted / norms, len(norms)
    # Steps of the path add channels, and some remove one again. Beyond `width` channels the path is of no use, and the
    # time to follow it grows with the cube of its length. Coordinate descent at one penalty after another is ten times
    # as fast where channels are independent, and up to eight times as slow where they are correlated, as real ones are.
    for most in (width + width // 16 + 1, width + width // 4 + 1, 8 * n):
        # Changed in place by `lars_path_gram`, which swaps columns. Rows are padded: with 2,048 channels, all numbers
        # of a column would otherwise compete for the same few places of the cache.
        gram = np.empty((n, n + 8))[:, :n]
        np.divide(contributions.gram, np.outer(norms, norms), out=gram)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # similar channels end the path early: no harm
            _, _, path = lars_path_gram(wanted, gram, n_samples=1, max_iter=most, copy_Gram=False, method="lasso")
        counts = (path != 0).sum(0)
        if counts.max() > width:
            break
    at = int(np.flatnonzero(counts <= width)[-1])
    # Then by where on the path a factor first becomes nonzero, and by contribution where it never does.
    first = np.where((path != 0).any(1), (path != 0).argmax(1), path.shape[1])
    order = np.lexsort((-np.diag(contributions.gram), first, path[:, at] == 0))
    return order[:width]
