"""Peak activation memory: the largest number of bytes of tensors held at once while a network predicts one image.

Nodes run in the order of the graph. A tensor is held from the node that produces it to the last one that reads it, and
the image from the beginning. Operators that work value by value (activations, batch norms with fixed statistics,
additions, dropout, reshapes) overwrite an input that nothing reads afterwards. Operators' workspaces and weights are
not counted.
"""

from __future__ import annotations

import math
from typing import Dict, List, NamedTuple, Optional, Tuple

import numpy as np

from gcp.cost.base import COSTS, Cost, Term
from gcp.graph.network import Network
from gcp.graph.operators import operator
from gcp.options import Options

FLOAT32 = 4  # bytes per value


class Buffer(NamedTuple):
    """Memory that one tensor after another uses: (channels per unit of each group, and fixed ones) times `values` each.

    The buffer is in use from node `first` to node `last`, inclusive.
    """

    per_unit: Tuple[Tuple[str, int], ...]
    fixed: int
    values: int
    first: int
    last: int


@COSTS.register("memory", label="Peak memory", method="GCP-memory", paper_label="peak memory", unit="bytes")
def peak_memory(net: Network, options: Optional[Options] = None) -> Cost:
    """Bytes of activations in float32: the largest of the terms for the moments at which a new buffer is needed."""
    found = buffers(net)
    moments = sorted({b.first for b in found})
    # By number, since equal buffers can be in use from the same first to the same last node, as the halves of a split.
    alive = [frozenset(k for k, b in enumerate(found) if b.first <= at <= b.last) for at in moments]
    # A moment whose buffers are a subset of another moment's cannot be the peak.
    most = {now for now in alive if not any(now < other for other in alive)}
    parts = [_term([found[k] for k in sorted(now)], net.nodes[at].name) for at, now in zip(moments, alive)]
    return Cost([part for part, now in zip(parts, alive) if now in most], "max", parts=parts)


def buffers(net: Network) -> List[Buffer]:
    """The buffers that a prediction needs, in the order of their first use."""
    end, last = len(net.nodes), {}
    for i, node in enumerate(net.nodes):
        for tensor in node.inputs:
            last[tensor] = i
    last.update(dict.fromkeys(net.outputs, end))
    of: Dict[Tuple[int, int], int] = {}  # tensor -> number of its buffer
    found: List[list] = []
    for i, node in enumerate(net.nodes):
        if node.op == "null" and i != net.data:
            continue
        for o, shape in enumerate(net.shapes[i]):
            if (i, o) not in last and (i, o) != (i, 0):
                continue  # an output that nothing reads, such as a norm's statistics
            over = None
            if o == 0 and operator(node.op).in_place:
                over = next((t for t in node.inputs if _can_go(net, t, i, last, of) and _alike(net, t, (i, 0))), None)
            if over is not None:
                of[i, o] = of[over]
            else:
                of[i, o] = len(found)
                found.append([*_channels(net, i, o, shape), i, i])
            found[of[i, o]][-1] = max(found[of[i, o]][-1], last.get((i, o), i))
    return [Buffer(*each) for each in found]


def _can_go(net: Network, tensor: Tuple[int, int], i: int, last: Dict, of: Dict[Tuple[int, int], int]) -> bool:
    """Whether nothing after node i reads what is in the tensor's buffer; False for the image, which is the caller's."""
    if tensor not in of or tensor[0] == net.data:
        return False
    return all(last.get(other, 0) <= i for other, number in of.items() if number == of[tensor])


def _alike(net: Network, a: Tuple[int, int], b: Tuple[int, int]) -> bool:
    return math.prod(net.shapes[a[0]][a[1]]) == math.prod(net.shapes[b[0]][b[1]])


def _channels(net: Network, i: int, o: int, shape: Tuple[int, ...]) -> Tuple[tuple, int, int]:
    """The size of a tensor as the first three fields of `Buffer`."""
    labels = net.structure.calls[i].outs[o] if i in net.structure.calls else None
    if labels is None:
        return (), 1, math.prod(shape)
    form = dict(net.structure.form(labels.labels))
    fixed = form.pop(None, 0)
    return tuple(sorted(form.items())), fixed, math.prod(shape) // shape[labels.axis]


def _term(alive: List[Buffer], place: str) -> Term:
    """The total bytes of these buffers as a function of the widths of the groups that they hold."""
    names = tuple(sorted({name for buffer in alive for name, _ in buffer.per_unit}))
    slopes = np.array([sum(b.values * dict(b.per_unit).get(name, 0) for b in alive) for name in names], np.float64)
    fixed = float(sum(b.values * b.fixed for b in alive))
    return Term(names, lambda *widths: FLOAT32 * float(fixed + slopes @ np.array(widths, np.float64)), place)
