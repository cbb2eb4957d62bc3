"""CP: the channels that LASSO leaves when the next layer's outputs are to be said by few of its inputs.

He, Zhang & Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, eqs. 2 to 5: one factor per
channel, whose contribution has weights of norm 1, and a penalty on the factors that is raised until few enough are not
zero; then least squares for the weights. With `shortcuts` the last layer of a residual branch makes up for the error of
its shortcut (section 3.3). Different here: the whole path of the penalty is followed at once (least angle regression on
the Gram matrix), where the paper raises it step by step.
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
    """Which channels may go, what they are judged by, and what layers are to say."""

    shortcuts: bool = Field(
        False,
        description="whether the last layer of a residual branch makes up for what its shortcut does not say any more, "
        "as published",
    )

    def corrects_shortcuts(self) -> bool:
        """See `LayerwiseOptions`."""
        return self.shortcuts

    def label(self, cost: str) -> str:
        """Its name in the literature."""
        return "CP"


@METHODS.register("cp", CpOptions)
def cp(problem: Problem, options: CpOptions, run: Run) -> Outcome:
    """Prune by CP's LASSO."""
    return prune_layerwise(problem, options, by_lasso, run)


def by_lasso(contributions: Contributions, width: int) -> np.ndarray:
    """So many channels: those of the smallest penalty with at most as many factors that are not zero.

    Where factors become zero together, those that the path adds next fill up.
    """
    norms = np.where(contributions.norms > 0, contributions.norms, 1.0)
    wanted, n = contributions.wanted / norms, len(norms)
    # Steps of the path add channels, and some take one away again. Beyond `width` channels it says nothing more, and to
    # follow it takes time that grows with the third power of how far.
    for most in (width + width // 16 + 1, width + width // 4 + 1, 8 * n):
        # Changed in place by what follows. Rows lie a little apart, as columns are exchanged: of 2,048 channels, all
        # numbers of a column would be wanted in the same few places of the cache.
        gram = np.empty((n, n + 8))[:, :n]
        np.divide(contributions.gram, np.outer(norms, norms), out=gram)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # channels alike end the path early: enough is known
            _, _, path = lars_path_gram(wanted, gram, n_samples=1, max_iter=most, copy_Gram=False, method="lasso")
        counts = (path != 0).sum(0)
        if counts.max() > width:
            break
    at = int(np.flatnonzero(counts <= width)[-1])
    # Then by where on the path a factor is first not zero, and by contribution where it never is.
    first = np.where((path != 0).any(1), (path != 0).argmax(1), path.shape[1])
    order = np.lexsort((-np.diag(contributions.gram), first, path[:, at] == 0))
    return order[:width]
