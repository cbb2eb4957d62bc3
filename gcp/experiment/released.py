"""The seven PruneNets that the paper's authors released: is what we make of them what was published?

In: a network's GluonCV name and its row of results/reference/released_prunenets.csv. Out: its parameters, MACs and
widths beside the published ones, and whatever disagrees.
"""

from __future__ import annotations

import json
import math
from importlib import resources
from pathlib import Path
from typing import Dict, List, Mapping, Tuple

import pandas as pd

from gcp.backend.zoo import GLUONCV_PREFIX, open_network
from gcp.cost.analytic import macs, params
from gcp.errors import UserError
from gcp.graph.channels import has_weight, is_depthwise, is_norm
from gcp.graph.network import Network

SHAPES = "gluoncv.model_zoo.pruned_resnet"
INPUT = (3, 224, 224)
HALF = 0.5  # published numbers are rounded: they agree if they are within half of their last digit
ACCURACY_POINTS = 0.15  # decoders and resizers differ a little between versions


def published(folder: Path) -> pd.DataFrame:
    """The released networks, by name. UserError: the table that came with the toolkit is not there or not whole."""
    path = folder / "released_prunenets.csv"
    columns = ["shape_json", "top1", "top5", "params_m", "params_kept", "gmacs_224", "macs_reduction", "base_model"]
    try:
        return pd.read_csv(path).set_index("model")[columns]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: cannot be read as the published data that came with the toolkit: {error}") from error


def shapes(name: str) -> Dict[str, List[int]]:
    """Weight name -> shape, as the GluonCV wheel says them for a released network (its file is `name`)."""
    text = resources.files(SHAPES).joinpath(name).read_text(encoding="utf-8")
    return {key[len(GLUONCV_PREFIX) :]: shape for key, shape in json.loads(text).items()}


def weights(net: Network) -> int:
    """Weights and biases of convs and dense layers: what the published counts of parameters count."""
    return sum(math.prod(net.shapes[j][0]) for node in net.nodes if has_weight(node) for j, _ in node.inputs[1:])


def verify(name: str, row: Mapping, said: Mapping[str, List[int]]) -> Tuple[dict, List[str]]:
    """Facts of a released network, and what disagrees with its published `row` or the shapes that GluonCV `said`."""
    net, base = open_network(name, INPUT), open_network(row["base_model"], INPUT)
    n_macs, n_weights = macs(net)(net.widths), weights(net)
    facts = {
        "Network": name,
        "Params (M)": n_weights / 1e6,
        "GMACs": n_macs / 1e9,
        "Params kept": n_weights / weights(base),
        "MACs reduction": macs(base)(base.widths) / n_macs,
        "Params with norms (M)": params(net)(net.widths) / 1e6,
        "Groups": len(net.groups),
        "Tied": sum(len(g.producers) > 1 for g in net.groups),
        "Narrowest": min(net.widths.values()),
        "Widest": max(net.widths.values()),
    }
    # How the published ratios came about: the fraction kept is over all of the base's parameters, norms among them, and
    # the reduction of MACs is of a count that was rounded before.
    ratios = {
        "kept": n_weights / params(base)(base.widths),
        "reduction": macs(base)(base.widths) / 1e9 / round(n_macs / 1e9, 3),
    }
    problems = [
        f"{name}: {what} is {value:.{digits + 1}f}, published: {row[key]}"
        for what, value, key, digits in (
            ("params (M)", facts["Params (M)"], "params_m", 3),
            ("GMACs", facts["GMACs"], "gmacs_224", 3),
            ("params over all of the base's", ratios["kept"], "params_kept", 3),
            ("reduction of MACs", ratios["reduction"], "macs_reduction", 2),
        )
        if abs(value - row[key]) > (HALF + 1e-6) * 10**-digits
    ]
    in_name = float(name.rpartition("_")[2])
    if math.floor(100 * facts["Params kept"] + 1e-9) != round(100 * in_name):
        problems.append(f"{name}: keeps {facts['Params kept']:.4f} of the parameters, its name says {in_name}")
    return facts, problems + disagreeing_shapes(net, said) + disagreeing_groups(net, said)


def disagreeing_shapes(net: Network, said: Mapping[str, List[int]]) -> List[str]:
    """Arrays of the network that are not as said, or not said, and those said that it does not have."""
    ours = {
        net.nodes[j].name: list(net.shapes[j][0]) for node in net.nodes if has_weight(node) for j, _ in node.inputs[1:]
    }
    problems = [
        f"{net.name}: '{key}' is said to be {shape}, the network has {ours.get(key)}"
        for key, shape in said.items()
        if ours.get(key) != shape
    ]
    return problems + [
        f"{net.name}: '{key}' is {ours[key]}, nothing is said of it"
        for key in ours
        if key not in said and key.endswith("weight")
    ]


def disagreeing_groups(net: Network, said: Mapping[str, List[int]]) -> List[str]:
    """Layers whose said outputs or inputs are not as many as the channels of the group that we put them in."""
    problems = []
    for group in net.groups:
        outputs = {layer: said.get(net.weight(layer), [None])[0] for layer in group.producers}
        inputs = {
            layer: said.get(net.weight(layer), [None, None])[1]
            for layer in group.consumers
            if not is_depthwise(net, net.index[layer])
        }
        for kind, found in (("outputs", outputs), ("inputs", inputs)):
            problems += [
                f"{net.name}: group '{group.name}' has {group.size} channels, '{layer}' {n} {kind}"
                for layer, n in found.items()
                if n != group.size
            ]
    norms = {net.index[n] for group in net.groups for n in group.norms}
    return problems + [
        f"{net.name}: batch norm '{node.name}' belongs to no group"
        for i, node in enumerate(net.nodes)
        if is_norm(net, i) and i not in norms
    ]


def disagreeing_accuracy(name: str, row: Mapping, measured: Mapping[str, float]) -> List[str]:
    """Accuracies (fractions) that are further from GluonCV's table (percent) than other decoders explain."""
    return [
        f"{name}: {key} is {100 * measured[key]:.2f} %, published: {row[key]} %"
        for key in ("top1", "top5")
        if abs(100 * measured[key] - row[key]) > ACCURACY_POINTS
    ]
