"""Costs that are counted: multiply-accumulates and parameters, as defined by the operators of the graph."""

from __future__ import annotations

import math
from typing import Dict, Iterable, Iterator, Optional, Tuple

from gcp.cost.base import COSTS, Cost, product
from gcp.graph.channels import Call, layer_name
from gcp.graph.network import Network, auxiliary, frozen
from gcp.options import Options

Form = Dict[Optional[str], int]  # a number of channels: group -> channels per unit, None -> fixed channels


@COSTS.register("macs", label="MACs", method="GCP-f", paper_label="FLOPs", unit="multiply-accumulates")
def macs(net: Network, options: Optional[Options] = None) -> Cost:
    """Multiply-accumulates of the convs and dense layers for one image at the network's input size."""
    return _cost(
        (call.node.name, call.operator.positions(call), forms)
        for call in net.structure.calls.values()
        for k, forms in _arrays(net, call)
        if k == call.operator.weight
    )


@COSTS.register("params", label="Params", method="GCP-p", paper_label="params", unit="parameters")
def params(net: Network, options: Optional[Options] = None) -> Cost:
    """Trainable parameters: weights, biases, scales and shifts, but not running statistics."""
    skipped, found = auxiliary(net) | frozen(net), {}
    for call in net.structure.calls.values():
        for k, forms in _arrays(net, call):
            found.setdefault(net.nodes[call.node.inputs[k][0]].name, forms)
    return _cost((name, 1, forms) for name, forms in found.items() if name not in skipped)


def running_statistics(net: Network) -> int:
    """Number of running means and variances, which MXNet lists separately from the parameters."""
    return sum(net.arrays[name].size for name in auxiliary(net))


def prunable_share(net: Network) -> float:
    """The share, in [0, 1], of the channels produced by convs and dense layers that can be removed."""
    made = [call.made for call in net.structure.calls.values() if call.made is not None]
    return sum(int((units >= 0).sum()) for units in made) / max(1, sum(map(len, made)))


def _arrays(net: Network, call: Call) -> Iterator[Tuple[int, Tuple[Form, ...]]]:
    """The positions of a node's array inputs, and how their sizes follow from widths: one form per axis."""
    for k, (j, _) in enumerate(call.node.inputs):
        if net.is_array(j):
            labels = call.arrays.get(k, {})
            yield (
                k,
                tuple(
                    net.structure.form(labels[axis]) if axis in labels else {None: n}
                    for axis, n in enumerate(net.shapes[j][0])
                ),
            )


def _cost(parts: Iterable[Tuple[str, int, Tuple[Form, ...]]]) -> Cost:
    """A sum of products of a number and forms, at most two of which depend on widths; each product has a place."""
    total: Dict[Tuple[Optional[str], Optional[str]], int] = {}
    each = []
    for place, number, forms in parts:
        number *= math.prod(form[None] for form in forms if set(form) == {None})
        first, second, *_ = [form for form in forms if set(form) != {None}] + [{None: 1}] * 2
        for a, n in first.items():
            for b, m in second.items():
                total[a, b] = total.get((a, b), 0) + number * n * m
                each.append(product(float(number * n * m), a, b, place))
    return Cost([product(float(value), a, b) for (a, b), value in total.items()], parts=each)


def describe(net: Network) -> dict:
    """Parameters, MACs, and every group with the cost of one of its channels, as plain JSON values."""
    widths, costs = net.widths, {"macs": macs(net), "params": params(net)}
    marginal = {key: cost.marginal(widths) for key, cost in costs.items()}
    return {
        "name": net.name,
        "input": list(net.input_shape),
        "classes": net.n_classes,
        "params": int(costs["params"](widths)),
        "running_statistics": running_statistics(net),
        "macs": int(costs["macs"](widths)),
        "groups": [
            {
                "name": g.name,
                "size": g.size,
                "producers": [layer_name(p) for p in g.producers],
                "consumers": [layer_name(c) for c in g.consumers],
                "macs_per_channel": int(marginal["macs"][g.name]),
                "params_per_channel": int(marginal["params"][g.name]),
            }
            for g in net.groups
        ],
    }
