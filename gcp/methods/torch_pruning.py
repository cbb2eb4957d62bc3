"""Torch-Pruning as a method: it prunes the same dense weights in PyTorch, and its choice of channels is carried back.

Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023. It prunes in small steps, which is one of its
options: if asked for everything at once, it leaves a group whole that rounding would empty. Its choice is taken as it
is; this toolkit's cost determines how far it has to go to meet the budget. Its group norm importance is the same class
as its magnitude importance, unless a training with its own penalty comes first, which is left out here.
"""

from __future__ import annotations

import copy
import importlib.util
import tempfile
import warnings
from pathlib import Path
from typing import Any, Dict, Literal

import numpy as np
from pydantic import Field

from gcp.cost.base import Budget
from gcp.errors import UserError
from gcp.graph.channels import Group
from gcp.graph.network import Keep, Network, Widths
from gcp.graph.surgery import shrink
from gcp.methods.base import METHODS, MethodOptions, Outcome, Problem, Run, cut, with_new_statistics

NEEDS = "create its environment with `bash scripts/peers.sh`, and run with .venv-peers/bin/python"
STEPS = 100  # in which Torch-Pruning would remove everything; the first one within the budget is used
IMPORTANCES = {"magnitude": "MagnitudeImportance", "bn_scale": "BNScaleImportance"}  # Torch-Pruning's own names


class TorchPruningOptions(MethodOptions):
    """Options of Torch-Pruning's pruner; all others keep its defaults."""

    importance: Literal[tuple(IMPORTANCES)] = Field("magnitude", description="how Torch-Pruning ranks channels")
    global_pruning: bool = Field(True, description="true: all groups are ranked together; false: each by itself")

    def label(self, cost: str) -> str:
        """The method's name, with the importance."""
        return f"Torch-Pruning ({self.importance})"

    def check(self, net: Network, budget: Budget) -> None:
        """See `MethodOptions`; also raises UserError if Torch-Pruning is not installed."""
        super().check(net, budget)
        if importlib.util.find_spec("torch_pruning") is None:
            raise UserError(f"method torch_pruning: it is not installed; {NEEDS}", "torch.absent")

    def variant(self) -> Dict[str, str]:
        """Whether groups are ranked together."""
        return {"global": str(self.global_pruning).lower()}


@METHODS.register("torch_pruning", TorchPruningOptions)
def torch_pruning(problem: Problem, options: TorchPruningOptions, run: Run) -> Outcome:
    """Let Torch-Pruning prune step by step until the network is within the budget.

    UserError: it does not support an operator, or cannot remove enough.
    """
    from gcp.backend import convert, export, torch_files

    with tempfile.TemporaryDirectory() as folder:
        module = torch_files.module(export.to_onnx(problem.net, Path(folder, "network.onnx")))
    # The weights are the same, so the outputs must agree to 1e-4, or a UserError is raised.
    convert.difference(problem.net, lambda images: torch_files.outputs(module, images), "PyTorch's network")
    small, timings, images = cut(
        problem, problem.budget.target * problem.budget.original, lambda aim: kept(problem, options, module, aim)
    )
    if timings:
        run.log("timed", timings=timings)
    small, n_statistics = with_new_statistics(problem, small)
    images["statistics"] = n_statistics
    return Outcome(small, {purpose: n for purpose, n in images.items() if n})


def kept(problem: Problem, options: TorchPruningOptions, module: Any, limit: float) -> Keep:
    """The units that Torch-Pruning leaves in the first network on its way whose cost is within the limit.

    `module`: the network in PyTorch. UserError: it never gets that small.
    """
    import torch
    import torch_pruning as tp

    net, budget = problem.net, problem.budget
    images, small = torch.zeros(1, *net.input_shape), copy.deepcopy(module)
    pruner = tp.pruner.BasePruner(
        small,
        images,
        getattr(tp.importance, IMPORTANCES[options.importance])(),
        global_pruning=options.global_pruning,
        pruning_ratio=1.0,
        iterative_steps=STEPS,
        ignored_layers=[layer for layer in small.modules() if isinstance(layer, torch.nn.Linear)][-1:],
        round_to=budget.round_to,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(STEPS + 1):
            widths = _widths(net, small)
            if budget.cost(widths) <= limit:
                break
            if step == STEPS:
                left = f"Torch-Pruning leaves at least {budget.cost(widths) / budget.original:.4f} of the cost"
                raise UserError(f"method torch_pruning: {left}; give a larger target", "budget.target")
            pruner.step()
        # Replayed on a copy whose weights are the indices of their outputs, the removals show which outputs are left.
        numbered = copy.deepcopy(module)
        with torch.no_grad():
            for layer in filter(_has_rows, numbered.modules()):
                shape = (-1, *[1] * (layer.weight.ndim - 1))
                layer.weight.copy_(torch.arange(len(layer.weight)).reshape(shape).expand_as(layer.weight))
        tp.DependencyGraph().build_dependency(numbered, images).load_pruning_history(pruner.pruning_history())
    left = {name: layer.weight.detach().numpy() for name, layer in numbered.named_modules() if _has_rows(layer)}
    keep = {g.name: _of_group(net, g, left[g.producers[0]]) for g in net.groups}
    _check(shrink(net, keep), small)
    return keep


def _widths(net: Network, module: Any) -> Widths:
    """The widths of a pruned module, from the outputs that the first producer of each group has left."""
    left = {name: len(layer.weight) for name, layer in module.named_modules() if _has_rows(layer)}
    whole = {g.name: len(net.arrays[net.weight(g.producers[0])]) for g in net.groups}
    return {g.name: g.size * left[g.producers[0]] // whole[g.name] for g in net.groups}


def _of_group(net: Network, group: Group, numbers: np.ndarray) -> np.ndarray:
    """The units of a group that are left, from the indices of the outputs that its first producer has left."""
    rows = numbers.reshape(len(numbers), -1)[:, 0].astype(int)
    units = net.structure.calls[net.index[group.producers[0]]].made[rows] - group.start
    return np.unique(units[(units >= 0) & (units < group.size)])


def _check(net: Network, module: Any) -> None:
    """Raise UserError unless the network has the weights that Torch-Pruning left."""
    for name, layer in module.named_modules():
        if _has_rows(layer):
            ours, theirs = net.arrays[net.weight(name)], layer.weight.detach().numpy()
            if ours.size != theirs.size or not np.array_equal(ours, theirs.reshape(ours.shape)):
                wrong = f"the weights it left in layer '{name}' are not those that the network keeps"
                raise UserError(f"method torch_pruning: {wrong}; choose another prune.method", "method.network")


def _has_rows(layer: Any) -> bool:
    """Whether a PyTorch module is a layer whose weights have a row for each output."""
    return type(layer).__name__ in ("Conv2d", "Linear")
