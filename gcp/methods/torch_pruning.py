"""Torch-Pruning from outside: the same dense weights in PyTorch, pruned there, and its choice of channels carried back.

Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023. What it chooses is taken as it is; how far it has to
go for the budget is told by this toolkit's cost. Its group norm is the same class as its magnitude, unless a training
with its own penalty goes before, which is left out here.
"""

from __future__ import annotations

import copy
import importlib.util
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Literal

import numpy as np
from pydantic import Field

from gcp.cost.base import Budget
from gcp.errors import UserError
from gcp.graph.network import Keep, Network
from gcp.graph.surgery import shrink
from gcp.methods.base import METHODS, MethodOptions, Outcome, Problem, Run, cut, with_new_statistics

NEEDS = "make its environment with `bash scripts/peers.sh`, and run with .venv-peers/bin/python"
HALVINGS = 12  # of the ratio that is asked for: to 0.02 % of the channels
IMPORTANCES = {"magnitude": "MagnitudeImportance", "bn_scale": "BNScaleImportance"}  # Torch-Pruning's own names


class TorchPruningOptions(MethodOptions):
    """Options of Torch-Pruning's pruner; all others are as it ships."""

    importance: Literal[tuple(IMPORTANCES)] = Field("magnitude", description="what it ranks channels by")
    global_pruning: bool = Field(True, description="true: it ranks all groups together; false: group by group")

    def label(self, cost: str) -> str:
        """With the importance."""
        return f"Torch-Pruning ({self.importance})"

    def check(self, net: Network, budget: Budget) -> None:
        """See `MethodOptions`."""
        super().check(net, budget)
        if importlib.util.find_spec("torch_pruning") is None:
            raise UserError(f"method torch_pruning: it is not installed; {NEEDS}", "torch.absent")

    def variant(self) -> Dict[str, str]:
        """How groups are compared."""
        return {"global": str(self.global_pruning).lower()}


@METHODS.register("torch_pruning", TorchPruningOptions)
def torch_pruning(problem: Problem, options: TorchPruningOptions, run: Run) -> Outcome:
    """Ask Torch-Pruning for ever smaller networks until one is within the budget.

    UserError: it does not know an operator, or leaves too much at any ratio.
    """
    budget, peer = problem.budget, _Peer(problem.net, options, problem.budget.round_to)

    def choose(aim: float) -> Keep:
        low, high = 0.0, 1.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            enough = budget.cost(peer.widths(middle)) <= aim
            low, high = (low, middle) if enough else (middle, high)
        if budget.cost(peer.widths(high)) > aim:
            wrong = f"{aim / budget.original:.4f} of the cost is not reached by Torch-Pruning at any ratio"
            raise UserError(f"method torch_pruning: {wrong}; give a larger target", "budget.target")
        return peer.keep(high)

    small, timings, images = cut(problem, budget.target * budget.original, choose)
    if timings:
        run.log("timed", timings=timings)
    small, n_statistics = with_new_statistics(problem, small)
    images["statistics"] = n_statistics
    return Outcome(small, {purpose: n for purpose, n in images.items() if n})


@dataclass
class _Peer:
    """A network as a PyTorch module, and which channels Torch-Pruning keeps of it."""

    net: Network
    options: TorchPruningOptions
    round_to: int

    def __post_init__(self) -> None:
        from gcp.backend import convert, export, torch_files

        with tempfile.TemporaryDirectory() as folder:
            self._module = torch_files.module(export.to_onnx(self.net, Path(folder, "network.onnx")))
        # The same weights: the same outputs to 1e-4, or a UserError.
        convert.difference(self.net, lambda images: torch_files.outputs(self._module, images), "PyTorch's network")
        self._found: Dict[float, Keep] = {}

    def widths(self, ratio: float) -> Dict[str, int]:
        """The widths that are left when so many channels are asked to go."""
        return {name: len(of) for name, of in self.keep(ratio).items()}

    def keep(self, ratio: float) -> Keep:
        """The units that are left when so many channels are asked to go."""
        if ratio not in self._found:
            self._found[ratio] = self._asked(ratio)
        return self._found[ratio]

    def _asked(self, ratio: float) -> Keep:
        import torch
        import torch_pruning as tp

        def pruned(module: Any) -> Any:
            outputs = [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)][-1:]
            importance = getattr(tp.importance, IMPORTANCES[self.options.importance])()
            pruner = tp.pruner.BasePruner(
                module,
                images,
                importance,
                global_pruning=self.options.global_pruning,
                pruning_ratio=ratio,
                ignored_layers=outputs,
                round_to=self.round_to,
            )
            pruner.step()
            return pruner

        images = torch.zeros(1, *self.net.input_shape)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = copy.deepcopy(self._module)
            history = pruned(module).pruning_history()
            # The same removals from a copy whose weights are the numbers of their outputs say which ones are left.
            numbered = copy.deepcopy(self._module)
            with torch.no_grad():
                for layer in numbered.modules():
                    if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
                        shape = (-1, *[1] * (layer.weight.ndim - 1))
                        layer.weight.copy_(torch.arange(len(layer.weight)).reshape(shape).expand_as(layer.weight))
            tp.DependencyGraph().build_dependency(numbered, images).load_pruning_history(history)
        left = {name: layer.weight.detach().numpy() for name, layer in numbered.named_modules() if _has_rows(layer)}
        keep = {g.name: self._of_group(g, left) for g in self.net.groups}
        self._check(keep, module)
        return keep

    def _of_group(self, group: Any, left: Dict[str, np.ndarray]) -> np.ndarray:
        """The units of a group that are left, by the outputs that its first producer has left."""
        call = self.net.structure.calls[self.net.index[group.producers[0]]]
        rows = left[group.producers[0]].reshape(len(left[group.producers[0]]), -1)[:, 0].astype(int)
        units = call.made[rows] - group.start
        return np.unique(units[(units >= 0) & (units < group.size)])

    def _check(self, keep: Keep, module: Any) -> None:
        """UserError unless the network with these units has the weights that Torch-Pruning left."""
        small = shrink(self.net, keep)
        for name, layer in module.named_modules():
            if _has_rows(layer):
                ours = small.arrays[small.weight(name)]
                if not np.array_equal(ours, layer.weight.detach().numpy().reshape(ours.shape)):
                    wrong = f"what it left of layer '{name}' is not what the network keeps"
                    raise UserError(f"method torch_pruning: {wrong}; set prune.method to another", "method.network")


def _has_rows(layer: Any) -> bool:
    """Whether a module of PyTorch is a layer whose weights have a row for each output."""
    return type(layer).__name__ in ("Conv2d", "Linear")
