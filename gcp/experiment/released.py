"""Check what we compute for the seven PruneNets that the paper's authors released against what was published.

In: a network's GluonCV name and its row of results/reference/released_prunenets.csv. Out: its parameters, MACs and
widths, and whatever disagrees with the published values.
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
HALF = 0.5  # published numbers are rounded: ours agree if they are within half a unit of the last digit
ACCURACY_POINTS = 0.15  # JPEG decoders and resizing differ slightly between versions


def published(folder: Path) -> pd.DataFrame:
    """The published data of the released networks, by name. UserError: the toolkit's table is missing or incomplete."""
    path = folder / "released_prunenets.csv"
    columns = ["shape_json", "top1", "top5", "params_m", "params_kept", "gmacs_224", "macs_reduction", "base_model"]
    try:
        return pd.read_csv(path).set_index("model")[columns]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: cannot be read as the published data that came with the toolkit: {error}") from error


def shapes(name: str) -> Dict[str, List[int]]:
    """Weight name -> shape of a released network, as listed in the file `name` of the GluonCV package."""
    text = resources.files(SHAPES).joinpath(name).read_text(encoding="utf-8")
    return {key[len(GLUONCV_PREFIX) :]: shape for key, shape in json.loads(text).items()}


def weights(net: Network) -> int:
    """The number of weights and biases of conv and dense layers, which is what published parameter counts include."""
    return sum(math.prod(net.shapes[j][0]) for node in net.nodes if has_weight(node) for j, _ in node.inputs[1:])


def verify(name: str, row: Mapping, said: Mapping[str, List[int]]) -> Tuple[dict, List[str]]:
    """Facts of a released network, and what disagrees with its published `row` or with `said`, GluonCV's shapes."""
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
    # How the published ratios were computed: the fraction kept is relative to all of the base's parameters, including
    # norms, and the reduction of MACs uses a count that had already been rounded.
    ratios = {
        "kept": n_weights / params(base)(base.widths),
        "reduction": macs(base)(base.widths) / 1e9 / round(n_macs / 1e9, 3),
    }
    problems = [
        f"{name}: {what} is {value:.{digits + 1}f}, published: {row[key]}"
        for what, value, key, digits in (
            ("params (M)", facts["Params (M)"], "params_m", 3),
            ("GMACs", facts["GMACs"], "gmacs_224", 3),
            ("params relative to all of the base's", ratios["kept"], "params_kept", 3),
            ("reduction of MACs", ratios["reduction"], "macs_reduction", 2),
        )
        if abs(value - row[key]) > (HALF + 1e-6) * 10**-digits
    ]
    in_name = float(name.rpartition("_")[2])
    if math.floor(100 * facts["Params kept"] + 1e-9) != round(100 * in_name):
        problems.append(f"{name}: keeps {facts['Params kept']:.4f} of the parameters, but its name says {in_name}")
    return facts, problems + disagreeing_shapes(net, said) + disagreeing_groups(net, said)


def disagreeing_shapes(net: Network, said: Mapping[str, List[int]]) -> List[str]:
    """Arrays of the network whose shapes differ from `said`, and those that only one of the two has."""
    ours = {
        net.nodes[j].name: list(net.shapes[j][0]) for node in net.nodes if has_weight(node) for j, _ in node.inputs[1:]
    }
    problems = [
        f"{net.name}: '{key}' should be {shape}, but the network has {ours.get(key)}"
        for key, shape in said.items()
        if ours.get(key) != shape
    ]
    return problems + [
        f"{net.name}: '{key}' is {ours[key]}, but no shape was published for it"
        for key in ours
        if key not in said and key.endswith("weight")
    ]


def disagreeing_groups(net: Network, said: Mapping[str, List[int]]) -> List[str]:
    """Layers whose number of outputs or inputs, as `said`, differs from the channels of the group that we put them in,
    and batch norms that belong to no group."""
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
                f"{net.name}: group '{group.name}' has {group.size} channels, but '{layer}' has {n} {kind}"
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
    """Accuracies (fractions) that differ from GluonCV's table (percent) by more than image decoders can explain."""
    return [
        f"{name}: {key} is {100 * measured[key]:.2f} %, published: {row[key]} %"
        for key in ("top1", "top5")
        if abs(100 * measured[key] - row[key]) > ACCURACY_POINTS
    ]
