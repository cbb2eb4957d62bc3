"""Costs that are counted: multiply-accumulates and parameters, read off the graph that is pruned."""

from __future__ import annotations

from typing import Optional

import numpy as np

from gcp.cost.base import COSTS, Cost, Term, product
from gcp.graph.network import NORM, Network, has_weight, is_depthwise, is_mask, layer_name
from gcp.options import Options


@COSTS.register("macs", label="MACs", method="GCP-f", paper_label="FLOPs", unit="multiply-accumulates")
def macs(net: Network, options: Optional[Options] = None) -> Cost:
    """Multiply-accumulates of the convs and dense layers for one image at the network's input size."""
    terms = []
    for i, node in enumerate(net.nodes):
        if not has_weight(node):
            continue
        sites = int(np.prod(net.shapes[i][1:], dtype=np.int64))
        terms.append(_weight_term(net, i, sites))
    return Cost(terms)


@COSTS.register("params", label="Params", method="GCP-p", paper_label="params", unit="parameters")
def params(net: Network, options: Optional[Options] = None) -> Cost:
    """Trainable parameters: weights, biases, scales and shifts. Running statistics are not among them."""
    terms = []
    for i, node in enumerate(net.nodes):
        if has_weight(node):
            terms.append(_weight_term(net, i, 1))
            if net.bias(node.name) is not None:
                terms.append(_per_channel(net, i, 1))
        elif node.op in NORM:
            learnt = sum(net.nodes[j].attrs.get("__lr_mult__") != "0.0" for j in node.inputs[1:3])
            terms.append(_per_channel(net, i, learnt))
        elif node.op != "null" and is_mask(net, i):
            terms.append(_per_channel(net, i, 1))
    return Cost(terms)


def running_statistics(net: Network) -> int:
    """Number of running means and variances, which MXNet lists apart from the parameters."""
    return sum(2 * net.shapes[i][0] for i, n in enumerate(net.nodes) if n.op in NORM)


def _weight_term(net: Network, i: int, sites: int) -> Term:
    """sites * (size of the weight of node i)."""
    node, out = net.nodes[i], net.owner[i]
    weight = net.shapes[node.inputs[1]]
    read = None if is_depthwise(net, i) else net.owner[node.inputs[0]]
    size = int(np.prod(weight, dtype=np.int64))
    for group in (out, read):
        if group is not None:
            size //= net.widths[group]
    return product(float(size * sites), out, read)


def _per_channel(net: Network, i: int, n: int) -> Term:
    out = net.owner[i]
    return product(float(n * net.shapes[i][0] // (net.widths[out] if out else 1)), out)


def describe(net: Network) -> dict:
    """Parameters, MACs and every group with what one channel of it costs, as plain JSON values."""
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
