"""Prune networks of the zoo at random, and check that removed channels give the same outputs as silenced ones."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Callable, Optional, Sequence, Tuple

import numpy as np

from gcp.backend import zoo
from gcp.backend.blocks import predict
from gcp.cost.analytic import prunable_share
from gcp.errors import UserError
from gcp.graph.network import Network, Node, frozen
from gcp.graph.surgery import rewrite, shrink, silence

KEPT = 0.7
SELECTING = ("_contrib_box_nms", "topk")
READING_BOXES = ("_contrib_ROIAlign", "ROIPooling")
DRAWN = {  # end of a name -> random values for its array, different for every channel
    "gamma": lambda rng, shape: rng.uniform(0.5, 1.5, shape) * rng.choice([-1, 1], shape),
    "beta": lambda rng, shape: rng.normal(0.3, 0.5, shape),
    "running_mean": lambda rng, shape: rng.normal(0, 0.3, shape),
    "running_var": lambda rng, shape: rng.uniform(0.5, 1.5, shape),
    "bias": lambda rng, shape: rng.normal(0, 0.3, shape),
}


TASKS = (  # pattern for the start of a name -> the network's task; the first that matches counts
    ("ssd|yolo3|center_net|.*rcnn", "detection"),
    ("fcn|psp|deeplab|icnet|danet|fastscnn|hrnet.*_s$", "segmentation"),
    (".*_pose", "pose"),
    (".*(ucf101|hmdb51|kinetics|sthsthv2|custom)", "action"),
    ("siamrpn|monodepth", "other"),
    ("", "classification"),
)


def task(name: str) -> str:
    """The task of a network of the zoo, by its name."""
    return next(task for pattern, task in TASKS if re.match(pattern, name))


@dataclass(frozen=True)
class Trial:
    """The result for a network: the share of its channels that can be removed and, if it was run, the difference."""

    said: str
    share: float = 0.0
    params: int = 0
    difference: Optional[float] = None


def tried(name: str, compared: bool = True, input_shape: Optional[Sequence[int]] = None, redrawn: bool = True) -> Trial:
    """Open a network and, if `compared`, remove a random 30 % of every group and compare with silencing them.

    Without `redrawn`, scales, shifts, statistics and biases are the network's own, which should not all be equal. The
    difference is the largest one of all outputs, over the largest output.
    """
    try:
        net = zoo.open_network(name, input_shape, seed=0 if compared else None)
        share = prunable_share(net)
    except UserError as error:
        return Trial(str(error))
    n_params = sum(value.size for value in net.arrays.values())
    if not share:
        return Trial("no channel can go", 0.0, n_params)
    said = f"{len(net.groups)} groups, {share:.0%} of the channels"
    if not compared:
        return Trial(said, share, n_params)
    net = away_from_borders(drawn(net) if redrawn else net)
    rng = np.random.default_rng(0)
    keep = {g.name: np.sort(rng.choice(g.size, max(1, int(KEPT * g.size)), replace=False)) for g in net.groups}
    images = rng.normal(size=(1, *net.input_shape)).astype(np.float32)
    tails = deciding_layers(net)
    expected = predict(up_to(silence(net, keep), tails), images)
    if not np.isfinite(expected).all():
        return Trial(f"{said}, not compared: outputs of random weights are not finite", share, n_params)
    small = predict(up_to(shrink(net, keep), tails), images)
    difference = float(np.abs(small - expected).max() / np.abs(expected).max())
    return Trial(f"{said}, difference {difference:.1e}", share, n_params, difference)


def deciding_layers(net: Network) -> Tuple[str, ...]:
    """Names of the layers to compare instead of the outputs; empty if the outputs themselves can be compared.

    A detector selects boxes from the outputs of these layers, and rounding decides between equally good ones; a sigmoid
    of the large outputs of random weights leaves nothing but rounding errors.
    """
    if not any(node.op in SELECTING for node in net.nodes) and not any(
        is_sigmoid(net.nodes[i]) for i, _ in net.outputs
    ):
        return ()
    calls = net.structure.calls.values()
    return tuple(call.node.name for call in calls if call.made is not None and (call.made < 0).all())


def is_sigmoid(node: Node) -> bool:
    """Whether the node is a sigmoid, by either of MXNet's operators."""
    return node.op == "sigmoid" or node.attrs.get("act_type") == "sigmoid"


def up_to(net: Network, layers: Sequence[str]) -> Network:
    """The network with the outputs of these layers, if any, as its own, and fixed boxes wherever it reads boxes."""
    if not layers:
        return net
    side, rng, arrays, at = min(net.input_shape[1:]), np.random.default_rng(0), dict(net.arrays), {}

    def edit(i: int, node: Node, add: Callable[[Node, tuple], int]) -> int:
        if node.op in READING_BOXES:
            (j, o), name = net.nodes[i].inputs[1], f"{node.name}_boxes"
            n = net.shapes[j][o][0]
            corners = rng.uniform(0, side, (n, 2, 2))
            arrays[name] = np.concatenate([np.zeros((n, 1)), corners.min(1), corners.max(1)], 1).astype(np.float32)
            boxes = add(Node("null", name, {}), (arrays[name].shape,))
            node = replace(node, inputs=(node.inputs[0], (boxes, 0)))
        at[node.name] = add(node, net.shapes[i])
        return at[node.name]

    net = rewrite(net, edit, arrays)
    return replace(net, outputs=tuple((at[layer], 0) for layer in layers))


def drawn(net: Network, seed: int = 0) -> Network:
    """The network with random scales, shifts, statistics and biases."""
    rng, held, arrays = np.random.default_rng(seed), frozen(net), {}
    for name, value in net.arrays.items():
        end = next((end for end in DRAWN if name.endswith("_" + end)), None)
        if end is not None and name not in held:
            arrays[name] = DRAWN[end](rng, value.shape).astype(np.float32)
    return net.with_arrays(arrays)


def away_from_borders(net: Network) -> Network:
    """The network with only one tap left in every padded conv, which never reads padding, so that the constants that
    replace removed channels are exact."""
    arrays = {}
    for node in net.nodes:
        if node.op != "Convolution":
            continue
        w, before = net.arrays[net.weight(node.name)], net.nodes[node.inputs[0][0]]
        pad = node.literal("pad", ()) or (0,) * (w.ndim - 2)
        if before.op == "Pad" and not any(pad):  # padding by a node of its own, as where the two ends differ
            pad = before.literal("pad_width")[4::2]
        if any(pad) or before.op == "Pad":
            steps = node.literal("dilate", (1,) * len(pad)) or (1,) * len(pad)
            at = (slice(None), slice(None), *(-(-p // s) for p, s in zip(pad, steps)))
            arrays[net.weight(node.name)] = np.zeros_like(w)
            arrays[net.weight(node.name)][at] = w[at] * np.sqrt(np.prod(w.shape[2:]))
    return net.with_arrays(arrays)
