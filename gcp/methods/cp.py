"""CP: the channels that LASSO selects when few inputs of the next layer have to reproduce its outputs.

He, Zhang & Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, eqs. 2 to 5: one factor per
channel, whose contribution has weights of norm 1, and a penalty on the factors that is raised until few enough are
nonzero; then least squares for the weights. With `shortcuts`, the last layer of a residual branch makes up for the
error of its shortcut (section 3.3). Different here: the exact path of the penalty is followed (gcp/methods/lasso.py),
where the paper raises it step by step.
"""

from __future__ import annotations

from typing import Tuple

import numpy as np
from pydantic import Field

from gcp.methods.base import METHODS, Outcome, Problem, Run
from gcp.methods.lasso import lasso
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

    Where no penalty leaves as many, the gap is filled by the channels that the path had before, in their order there,
    then by those that contribute most.
    """
    factors, n = lasso(*of_norm_1(contributions), width), len(contributions.norms)
    first = np.full(n, n)
    first[factors.order] = np.arange(len(factors.order))
    return np.lexsort((-np.diag(contributions.gram), first, factors.values == 0))[:width]


def of_norm_1(contributions: Contributions) -> Tuple[np.ndarray, np.ndarray]:
    """The Gram matrix and the wanted products of contributions whose weights have norm 1, as LASSO needs them."""
    norms = np.where(contributions.norms > 0, contributions.norms, 1.0)
    return contributions.gram / np.outer(norms, norms), contributions.wanted / norms
