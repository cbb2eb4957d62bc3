"""GCP's widths, filled from the dense network: the combination that the paper leaves for future work (section 6).

GCP decides how wide every layer is to be; ThiNet or CP decides which channels of the dense network to keep, and fits
the weights that read them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Literal

from pydantic import Field

from gcp.cost.base import COSTS, Budget
from gcp.errors import UserError
from gcp.graph.network import Network
from gcp.methods.base import METHODS, Outcome, Problem, Run, whole_batches, with_new_statistics
from gcp.methods.cp import by_lasso
from gcp.methods.gcp import GcpOptions
from gcp.methods.layerwise import LayerwiseOptions, prunable_sizes, reconstructed
from gcp.methods.thinet import least_missed

CHOICES = {"thinet": least_missed, "cp": by_lasso}


class GcpReconstructedOptions(GcpOptions):
    """GCP's schedule, and how its widths are filled from the dense network."""

    selection: Literal[tuple(CHOICES)] = Field(
        "thinet", description="the method that chooses channels and fits weights"
    )
    n_images_seen: int = Field(512, ge=1, le=10**6, description="training images used for each layer, in whole batches")

    def check(self, net: Network, budget: Budget) -> None:
        """See `MethodOptions`; also raises UserError if a group has a reader that cannot be fitted by least squares."""
        super().check(net, budget)
        for name in net.widths.keys() - prunable_sizes(net, "all").keys():
            wrong = f"the readers of the channels of '{name}' cannot be fitted by least squares"
            raise UserError(f"method gcp_reconstructed: {wrong}; set prune.method to gcp", "method.network")

    def label(self, cost: str) -> str:
        """GCP's name for the cost, and the name of the method that fills its widths."""
        return f"{COSTS[cost].method}, then {METHODS.options[self.selection]().label(cost)}"

    def n_images(self, n_train: int, batch: int, n_renewed: int = 0) -> int:
        """GCP's images, those used for the layers, and those used after the last cut."""
        return (
            super().n_images(n_train, batch, n_renewed) + whole_batches(self.n_images_seen, n_train, batch) + n_renewed
        )


@METHODS.register("gcp_reconstructed", GcpReconstructedOptions)
def gcp_reconstructed(problem: Problem, options: GcpReconstructedOptions, run: Run) -> Outcome:
    """Run GCP to find the widths, then prune the original network to these widths layer by layer."""
    found = METHODS["gcp"](problem, options, run)
    layerwise = LayerwiseOptions(where="all", n_images_seen=options.n_images_seen)
    net = reconstructed(replace(problem, iteration=0), found.network.widths, layerwise, CHOICES[options.selection])
    net, n_statistics = with_new_statistics(problem, net)
    n = whole_batches(options.n_images_seen, len(problem.data.train), problem.batch)
    images = Counter(found.images) + Counter({"selection": n, "statistics": n_statistics})
    return Outcome(net, dict(images), found.history, found.searches)
