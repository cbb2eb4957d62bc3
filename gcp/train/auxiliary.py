"""Auxiliary classifiers inside a network, as additional outputs of its graph, and the objectives that use them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Dict, List, Mapping, Sequence, Tuple

import numpy as np

from gcp.backend.blocks import to_block
from gcp.backend.engine import autograd, mx
from gcp.graph.channels import Tensor
from gcp.graph.network import Network, Node
from gcp.graph.operators import operator
from gcp.graph.surgery import rewrite
from gcp.train.distributed import device, process_group
from gcp.train.losses import Objective
from gcp.train.tasks import Task

PREFIX = "auxiliary"  # begins the names of all nodes and arrays of classifiers


def places(net: Network, n: int) -> List[int]:
    """Positions of n evenly spaced nodes for classifiers to read: additions or, if there are none, activations.

    There are fewer if the network has too few. The last one is left out, since the network's own classifier reads
    there.
    """
    found = [i for i, node in enumerate(net.nodes) if operator(node.op).is_addition and len(node.inputs) == 2]
    if not found:
        kinds = {"relu", "Activation", "LeakyReLU"}
        found = [i for i, node in enumerate(net.nodes) if node.op in kinds and len(net.shapes[i][0]) == 4]
    found = [i for i in found if len(net.shapes[i][0]) == 4]
    at = {round(len(found) * (k + 1) / (n + 1)) - 1 for k in range(n)}
    return [found[k] for k in sorted(at) if 0 <= k < len(found) - 1]


def with_classifiers(net: Network, at: Sequence[int], seed: int) -> Network:
    """The network with a classifier after each of these nodes: batch norm, ReLU, average pooling, dense layer.

    Its outputs are the network's own, followed by those of the classifiers in order (Zhuang et al., NeurIPS 2018,
    section 3.2).
    """
    rng, arrays, outputs = np.random.default_rng(seed), dict(net.arrays), []

    def edit(i: int, node: Node, add) -> int:
        here = add(node, net.shapes[i])
        if i not in at:
            return here
        name, shape = f"{PREFIX}{len(outputs)}", net.shapes[i][0]
        n = shape[1]

        def variable(what: str, value: np.ndarray) -> Tuple[int, int]:
            arrays[f"{name}_{what}"] = value.astype(np.float32)
            return add(Node("null", f"{name}_{what}", {}), (value.shape,)), 0

        ones, zeros = np.ones(n), np.zeros(n)
        values = (("gamma", ones), ("beta", zeros), ("running_mean", zeros), ("running_var", ones))
        norm = Node("BatchNorm", f"{name}_norm", {"fix_gamma": "False", "eps": "1e-05"},
                    ((here, 0), *(variable(what, value) for what, value in values)))  # fmt: skip
        last = add(norm, (shape, (n,), (n,)))
        last = add(Node("Activation", f"{name}_relu", {"act_type": "relu"}, ((last, 0),)), (shape,))
        pool = {"global_pool": "True", "pool_type": "avg", "kernel": "(1, 1)"}
        last = add(Node("Pooling", f"{name}_pool", pool, ((last, 0),)), ((1, n, 1, 1),))
        weight = variable("dense_weight", rng.normal(0, np.sqrt(1 / n), (net.n_classes, n)))
        bias = variable("dense_bias", np.zeros(net.n_classes))
        dense = Node("FullyConnected", f"{name}_dense", {"num_hidden": str(net.n_classes)}, ((last, 0), weight, bias))
        outputs.append((add(dense, ((1, net.n_classes),)), 0))
        return here

    wide = rewrite(net, edit, arrays)
    return replace(wide, arrays=arrays, outputs=(*wide.outputs, *outputs))


def without_classifiers(net: Network) -> Network:
    """The network without the classifiers that `with_classifiers` added."""
    own = [i for i, node in enumerate(net.nodes) if not node.name.startswith(PREFIX)]
    at = {i: k for k, i in enumerate(own)}
    nodes = tuple(replace(net.nodes[i], inputs=tuple((at[j], o) for j, o in net.nodes[i].inputs)) for i in own)
    outputs = tuple((at[i], o) for i, o in net.outputs if i in at)
    arrays = {name: value for name, value in net.arrays.items() if not name.startswith(PREFIX)}
    return Network(net.name, nodes, outputs, tuple(net.shapes[i] for i in own), arrays)


@dataclass(frozen=True)
class SummedObjective(Objective):
    """The sum of the task's losses over all outputs."""

    def __call__(self, block, x: mx.nd.NDArray, y: mx.nd.NDArray, seed: int, step: int) -> mx.nd.NDArray:
        """See `Objective`."""
        with autograd.record():
            return sum(self.task.loss(output, y, 0.0) for output in block(x))


class Chooser:
    """The joint loss of some layers' outputs and of a classifier's output, as a function of the layers' weights.

    `variances`: the variance of each layer's target outputs, by which its squared error is divided. The classifier is
    output `classifier` of the network; its loss is weighted by `lam`. Batch norm uses its running statistics, and
    dropout is off. The weights are trained by Adam, since the steepness of the loss differs by orders of magnitude
    between layers. Gradients and losses are means over the ranks' parts of a batch. Zhuang et al., NeurIPS 2018, eq. 6.
    """

    def __init__(
        self,
        net: Network,
        layers: Sequence[Tensor],
        variances: Sequence[float],
        classifier: int,
        lam: float,
        task: Task,
        lr: float,
    ) -> None:
        self._names = [net.weight(net.nodes[i].name) for i, _ in layers]
        told = replace(net, outputs=(net.outputs[classifier], *layers))  # nodes after these are not computed
        self._block = to_block(told, device(), frozen_statistics=True, trainable=set(self._names))
        self._params = [self._block.collect_params()[name] for name in self._names]
        self._average = process_group().averager([p.grad() for p in self._params])
        self._update = mx.optimizer.get_updater(mx.optimizer.Adam(learning_rate=lr))
        self._variances, self._lam, self._task = variances, lam, task

    def loss(self, x: mx.nd.NDArray, y: mx.nd.NDArray, wanted: Sequence[np.ndarray]) -> mx.nd.NDArray:
        """The joint loss of a batch, with target outputs `wanted` of the layers; sets the gradients of the weights."""
        with autograd.record(train_mode=False):
            output, *found = self._block(x)
            total = self._lam * self._task.loss(output, y, 0.0).mean()
            for said, should, variance in zip(found, wanted, self._variances):
                total = total + mx.nd.square(said - mx.nd.array(should, said.context)).mean() / variance
        total.backward()
        self._average()
        return total

    def gradients(self) -> List[np.ndarray]:
        """The gradients with respect to each layer's weights, from the last batch."""
        return [p.grad().asnumpy() for p in self._params]

    def step(self, masks: Mapping[str, np.ndarray]) -> None:
        """Update the weights whose mask is 1 with the gradients of the last batch."""
        for k, (name, p) in enumerate(zip(self._names, self._params)):
            self._update(k, p.grad() * mx.nd.array(masks[name], device()), p.data())

    def weights(self) -> Dict[str, np.ndarray]:
        """The layers' weights, by name."""
        return {name: p.data().asnumpy() for name, p in zip(self._names, self._params)}

    def put(self, weights: Mapping[str, np.ndarray]) -> None:
        """Replace the layers' weights by these, given by name."""
        for name, p in zip(self._names, self._params):
            p.set_data(mx.nd.array(weights[name], device()))
