"""Networks of the zoo, cut at random: is the one with channels removed the one with channels silenced?"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Optional, Sequence

import numpy as np

from gcp.backend import zoo
from gcp.backend.blocks import predict
from gcp.cost.analytic import prunable_share
from gcp.errors import UserError
from gcp.graph.network import Network, frozen
from gcp.graph.surgery import shrink, silence

KEPT = 0.7
DRAWN = {  # end of a name -> numbers for its array, of which no two channels have the same
    "gamma": lambda rng, shape: rng.uniform(0.5, 1.5, shape) * rng.choice([-1, 1], shape),
    "beta": lambda rng, shape: rng.normal(0.3, 0.5, shape),
    "running_mean": lambda rng, shape: rng.normal(0, 0.3, shape),
    "running_var": lambda rng, shape: rng.uniform(0.5, 1.5, shape),
    "bias": lambda rng, shape: rng.normal(0, 0.3, shape),
}


TASKS = (  # start of a name -> what the network is for; the first that fits
    ("ssd|yolo3|center_net|.*rcnn", "detection"),
    ("fcn|psp|deeplab|icnet|danet|fastscnn|hrnet.*_s$", "segmentation"),
    (".*_pose", "pose"),
    (".*(ucf101|hmdb51|kinetics|sthsthv2|custom)", "action"),
    ("siamrpn|monodepth", "other"),
    ("", "classification"),
)


def task(name: str) -> str:
    """What a network of the zoo is for, by its name."""
    return next(task for pattern, task in TASKS if re.match(pattern, name))


@dataclass(frozen=True)
class Trial:
    """What came of a network: the share of its channels that can go, and the difference if it was run."""

    said: str
    share: float = 0.0
    params: int = 0
    difference: Optional[float] = None


def tried(name: str, compared: bool = True, input_shape: Optional[Sequence[int]] = None) -> Trial:
    """Open a network, and if asked to cut 30 % of every group at random and compare."""
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
    net = away_from_borders(drawn(net))
    rng = np.random.default_rng(0)
    keep = {g.name: np.sort(rng.choice(g.size, max(1, int(KEPT * g.size)), replace=False)) for g in net.groups}
    images = rng.normal(size=(1, *net.input_shape)).astype(np.float32)
    expected = predict(ahead_of_selection(silence(net, keep)), images)
    if not np.isfinite(expected).all():
        return Trial(f"{said}, not compared: outputs of random weights are not finite", share, n_params)
    small = predict(ahead_of_selection(shrink(net, keep)), images)
    difference = float(np.abs(small - expected).max() / np.abs(expected).max())
    return Trial(f"{said}, difference {difference:.1e}", share, n_params, difference)


def ahead_of_selection(net: Network) -> Network:
    """A detector up to what it selects boxes from: rounding decides which of equally good ones it puts out."""
    at = next((node for node in net.nodes if node.op == "_contrib_box_nms"), None)
    return net if at is None else replace(net, outputs=at.inputs[:1])


def drawn(net: Network, seed: int = 0) -> Network:
    """The network with random scales, shifts, statistics and biases."""
    rng, held, arrays = np.random.default_rng(seed), frozen(net), {}
    for name, value in net.arrays.items():
        end = next((end for end in DRAWN if name.endswith("_" + end)), None)
        if end is not None and name not in held:
            arrays[name] = DRAWN[end](rng, value.shape).astype(np.float32)
    return net.with_arrays(arrays)


def away_from_borders(net: Network) -> Network:
    """The network with one tap of every padded conv, which never reads padding: constants are exact there."""
    arrays = {}
    for node in net.nodes:
        if node.op == "Convolution" and any(node.literal("pad", ()) or ()):
            w, pad = net.arrays[net.weight(node.name)], node.literal("pad")
            steps = node.literal("dilate", (1,) * len(pad)) or (1,) * len(pad)
            at = (slice(None), slice(None), *(p // s for p, s in zip(pad, steps)))
            arrays[net.weight(node.name)] = np.zeros_like(w)
            arrays[net.weight(node.name)][at] = w[at] * np.sqrt(np.prod(w.shape[2:]))
    return net.with_arrays(arrays)
