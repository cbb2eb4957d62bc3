"""What one batch does: a step owns the block, its loss and its optimiser; the loop in `loop.py` knows none of them.

Ordinary training, training in mixed precision and GCP's proximal gradient are each a step. A step outlives the loop:
its block also predicts (`outputs`) and gives gradients without an update (`backward`), so that a network that is
trained, evaluated and scored is built and hybridized once.
"""

from __future__ import annotations

import gc
from functools import lru_cache
from pathlib import Path
from typing import Callable, Dict, Mapping, Optional, Protocol, Set

import numpy as np

from gcp import seeds
from gcp.backend.blocks import from_block, to_block
from gcp.backend.engine import mx
from gcp.graph.network import Network, auxiliary, scale_arrays
from gcp.train.distributed import device, process_group
from gcp.train.losses import Objective
from gcp.train.optimisers import SGD, MixedSGD, Optimiser
from gcp.train.proximal import ProximalSGD
from gcp.train.tasks import TASKS

NET, OPTIMISER = "net:", "opt:"  # prefixes of the two parts of a state


class Step(Protocol):
    """One batch's worth of training. All that it draws at random follows from its seed and the step's number."""

    def __call__(self, x: mx.nd.NDArray, y: mx.nd.NDArray, i: int, lr: float) -> mx.nd.NDArray:
        """Make step number i on a batch (of several ranks: on this rank's part); returns the loss per image."""

    def synchronise(self) -> None:
        """Of several ranks: make equal what their own parts of the batches have moved apart, running statistics."""

    def state(self) -> Dict[str, mx.nd.NDArray]:
        """All that the next step depends on, and all of `network`, by name. The arrays are live, not copies."""

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over what `state` gave, as numpy arrays."""

    def network(self) -> Network:
        """The network with its present values."""


class OrdinaryStep:
    """Forward, loss, backward, sum of the gradients over the ranks, update.

    `optimiser` makes one for the block. `trainable` names the arrays that it may update, all by default;
    with `frozen_statistics` batch norm uses its running statistics, and leaves them as they are.
    """

    dtype = "float32"

    def __init__(
        self,
        net: Network,
        objective: Objective,
        optimiser: Callable[[object], Optimiser],
        seed: int = 0,
        trainable: Optional[Set[str]] = None,
        frozen_statistics: bool = False,
    ) -> None:
        self.objective, self._make_optimiser, self._seed = objective, optimiser, seed
        self._trainable, self._frozen_statistics = trainable, frozen_statistics
        self._fused = self.dtype == "float32" and _widths(net) not in _WITHOUT_FUSED
        self._is_tried = not self._fused or _aligned(net)
        self._build(net)

    def _build(self, net: Network) -> None:
        ctx, group = device(), process_group()
        self._net = net
        self.block = to_block(net, ctx, self._frozen_statistics, self._trainable, self._fused, self.dtype)
        self._params = dict(self.block.collect_params().items())
        self.optimiser = self._make_optimiser(self.block)
        self._all_reduce = group.all_reducer(self.optimiser.gradients())
        # Frozen statistics are equal on all ranks, and stay so.
        moving = [] if self._frozen_statistics else sorted(auxiliary(net))
        self.synchronise = group.averager([self._params[k].data() for k in moving])

    def __call__(self, x: mx.nd.NDArray, y: mx.nd.NDArray, i: int, lr: float) -> mx.nd.NDArray:
        """See `Step`."""
        loss = self.backward(x, y, i, self._seed)
        self._all_reduce()
        self.optimiser.step(lr, len(x) * process_group().world_size)
        return loss

    def backward(self, x: mx.nd.NDArray, y: mx.nd.NDArray, i: int, seed: int) -> mx.nd.NDArray:
        """The loss per image; the gradients of its sum are in the parameters' arrays. Draws follow from seed and i.

        Whether oneDNN has a backward for batch norm and relu as one operator depends on the widths and on the kernels
        that it picks for the machine; where the first batch shows that it has none, the block is built without. The
        results are the same bit by bit.
        """
        if self._is_tried:
            return self._backward(x, y, i, seed)
        state, self._is_tried = {k: v.asnumpy() for k, v in self.state().items()}, True
        try:
            loss = self._backward(x, y, i, seed)
            mx.nd.waitall()
        except mx.MXNetError:
            _WITHOUT_FUSED.add(_widths(self._net))
            self._fused = False
            self._build(self._net)
            self.restore(state)
            gc.collect()  # a block is full of cycles, and holds the memory of a whole step
            loss = self._backward(x, y, i, seed)
        return loss

    def _backward(self, x: mx.nd.NDArray, y: mx.nd.NDArray, i: int, seed: int) -> mx.nd.NDArray:
        seed_dropout(self._net, seed, i)
        loss = self.objective(self.block, x, y, seed, i)
        loss.backward(self._head_gradient(loss))
        return loss

    def _head_gradient(self, loss: mx.nd.NDArray) -> Optional[mx.nd.NDArray]:
        return None

    def outputs(self, x: np.ndarray) -> np.ndarray:
        """The block's prediction for images (n, 3, H, W)."""
        return self.block(mx.nd.array(x, device())).asnumpy()

    def state(self) -> Dict[str, mx.nd.NDArray]:
        """Parameters, running statistics and the optimiser's state."""
        return {
            **{NET + k: p.data() for k, p in self._params.items()},
            **{OPTIMISER + k: v for k, v in self.optimiser.state().items()},
        }

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """See `Step`."""
        self.load(self._net.with_arrays(_part(state, NET)))
        self.optimiser.restore({k: mx.nd.array(v, device(), v.dtype) for k, v in _part(state, OPTIMISER).items()})

    def load(self, net: Network) -> None:
        """Take over the values of a network of the same graph; the optimiser's state stays as it is."""
        for name, value in net.arrays.items():
            self._params[name].set_data(mx.nd.array(value, device(), self._params[name].dtype))

    def network(self) -> Network:
        """See `Step`."""
        return from_block(self._net, self.block)


class MixedStep(OrdinaryStep):
    """A step computed in float16 (on a GPU), with masters of the weights and a loss scale (see `MixedSGD`)."""

    dtype = "float16"
    optimiser: MixedSGD

    def _build(self, net: Network) -> None:
        super()._build(net)
        self.optimiser.take(net)

    def _head_gradient(self, loss: mx.nd.NDArray) -> mx.nd.NDArray:
        return mx.nd.full(loss.shape, self.optimiser.loss_scale, loss.context)

    def state(self) -> Dict[str, mx.nd.NDArray]:
        """As an ordinary step's, with the masters in place of their rounded copies."""
        return {**super().state(), **{NET + k: v for k, v in self.optimiser.masters.items()}}

    def load(self, net: Network) -> None:
        """As an ordinary step's, masters included."""
        super().load(net)
        self.optimiser.take(net)

    def network(self) -> Network:
        """The network with the masters' values."""
        return super().network().with_arrays({k: v.asnumpy() for k, v in self.optimiser.masters.items()})


class ProximalStep(OrdinaryStep):
    """GCP's regularise step (eq. 6): statistics frozen, proximal gradient on scales, shifts and the output layer.

    `penalties` are lambda times c_g, per group.
    """

    def __init__(
        self, net: Network, objective: Objective, penalties: Mapping[str, float], momentum: float, seed: int = 0
    ) -> None:
        def optimiser(block) -> ProximalSGD:
            return ProximalSGD(net, block, penalties, momentum)

        super().__init__(net, objective, optimiser, seed, scale_arrays(net), frozen_statistics=True)


def seed_dropout(net: Network, seed: int, i: int) -> None:
    """Have what dropout drops in batch i follow from the seed and i, so that a resumed run agrees.

    Dropout is the only user of MXNet's generator, which is left alone where there is none.
    """
    if any(n.op == "Dropout" for n in net.nodes):
        group = process_group()
        mx.random.seed(seeds.step_seed(seed, i, group.rank if group.world_size > 1 else None))


def scoring_step(net: Network, task: str) -> OrdinaryStep:
    """A step to take the gradients of scales and shifts from, with frozen statistics."""
    return OrdinaryStep(net, Objective(TASKS[task]), SGD, trainable=scale_arrays(net), frozen_statistics=True)


def random_step(net: Network, batch: int, lr: float = 0.1) -> Callable[[], None]:
    """A function that makes an ordinary step on all weights, on the same random images each time, to be timed."""
    step = OrdinaryStep(net, Objective(), lambda block: SGD(block, 0.9, 1e-4))
    x, y = step.objective.task.random_batch(net.input_shape, net.n_classes, batch)
    return lambda: step(x, y, 0, lr)


def _part(state: Mapping[str, np.ndarray], prefix: str) -> Dict[str, np.ndarray]:
    return {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}


# Widths for which a network had no fused backward: GCP's next step on them need not try again.
_WITHOUT_FUSED: Set[tuple] = set()


def _widths(net: Network) -> tuple:
    return net.name, net.input_shape, tuple(net.shapes)


def _aligned(net: Network) -> bool:
    """Whether all kernels lay out channels in blocks of 16: AVX-512, and every conv's width is a multiple of it.

    Grouped convs have kernels of their own, depthwise ones apart.
    """
    return _has_avx512() and all(
        net.shapes[i][0][1] % 16 == 0 and int(n.literal("num_group", 1)) in (1, net.shapes[i][0][1])
        for i, n in enumerate(net.nodes)
        if n.op == "Convolution"
    )


@lru_cache(maxsize=None)
def _has_avx512() -> bool:
    cpu = Path("/proc/cpuinfo")
    return cpu.exists() and "avx512f" in cpu.read_text()
