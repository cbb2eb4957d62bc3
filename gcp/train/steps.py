"""Training steps on one batch: a step owns the block, its loss and its optimiser, of which `loop.py` knows nothing.

Ordinary training, mixed-precision training and GCP's proximal gradient each have a step. A step outlives the loop: its
block also predicts (`outputs`) and computes gradients without an update (`backward`), so that a network that is
trained, evaluated and scored is built and hybridized only once.
"""

from __future__ import annotations

import gc
from typing import Callable, Dict, List, Mapping, Optional, Protocol, Set

import numpy as np

from gcp import seeds
from gcp.backend.blocks import from_block, to_block
from gcp.backend.engine import has_avx512, mx
from gcp.graph.network import Network, auxiliary, scale_arrays
from gcp.graph.surgery import padded
from gcp.train.distributed import device, process_group
from gcp.train.losses import Objective
from gcp.train.optimisers import SGD, MixedSGD, Optimiser
from gcp.train.proximal import ProximalSGD
from gcp.train.tasks import TASKS

NET, OPTIMISER, WIDTH = "net:", "opt:", "width"  # the prefixes of two parts of a state, and the key of a third


class Step(Protocol):
    """One batch's worth of training. All its random draws depend only on its seed and the step's number."""

    def __call__(self, x: mx.nd.NDArray, y: mx.nd.NDArray, i: int, lr: float) -> mx.nd.NDArray:
        """Make step number i on a batch (with several ranks: on this rank's part) and return the loss per image."""

    def synchronise(self) -> None:
        """With several ranks, average what differs after their own parts of the batches: running statistics."""

    def state(self) -> Dict[str, mx.nd.NDArray]:
        """Everything that the next step and `network` depend on, by name. The arrays are live, not copies."""

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Restore what `state` returned, given as numpy arrays."""

    def network(self) -> Network:
        """The network with its current values."""


class OrdinaryStep:
    """A forward pass, the loss, a backward pass, the sum of the gradients over the ranks, and an update.

    The block computes `wide`: `net` with idle channels that pad its groups to multiples of `kernel_width` (see
    `padded`). Kernels take longer for other numbers of channels than for the next multiple: an ordinary step of
    ResNet-18 at 32 px, batch 64, cut to a random half of its channels, took 81 ms as it was and 46 ms padded to
    multiples of 16. `optimiser` makes an optimiser for the block. `trainable` names the arrays that it may update, all
    by default; with `frozen_statistics`, batch norm uses its running statistics and leaves them unchanged.
    """

    dtype = "float32"
    width: Optional[int] = None  # the multiple that groups are padded to; None: the device's `kernel_width`
    tries_fused = True  # whether to try fused norms where it is unknown if they train correctly: see `backward`

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
        self._net, self.width = net, self.width or process_group().broadcast(kernel_width)
        self.wide, self._places = padded(net, self.width)
        fused = self.dtype == "float32" and device().device_type == "cpu"
        fused = fused and (_aligned(self.wide) or (_TRIED.get(_widths(self.wide)) if self.tries_fused else False))
        self._is_tried = fused is not None
        self._build(fused is not False)

    def _build(self, fused: bool) -> None:
        ctx, group, net = device(), process_group(), self.wide
        self.block = to_block(net, ctx, self._frozen_statistics, self._trainable, fused, self.dtype)
        self._params = dict(self.block.collect_params().items())
        self.optimiser = self._make_optimiser(self.block)
        self._all_reduce = group.all_reducer(self.optimiser.gradients())
        # Frozen statistics are equal on all ranks and stay equal.
        moving = [] if self._frozen_statistics else sorted(auxiliary(net))
        self.synchronise = group.averager([self._params[k].data() for k in moving])

    def __call__(self, x: mx.nd.NDArray, y: mx.nd.NDArray, i: int, lr: float) -> mx.nd.NDArray:
        """See `Step`."""
        loss = self.backward(x, y, i, self._seed)
        self.update(lr, len(x))
        return loss

    def update(self, lr: float, n: int) -> None:
        """Update the parameters with their gradients, which are sums over n images of this rank."""
        self._all_reduce()
        self.optimiser.step(lr, n * process_group().world_size)

    def backward(self, x: mx.nd.NDArray, y: mx.nd.NDArray, i: int, seed: int) -> mx.nd.NDArray:
        """The loss per image; the gradients of its sum are left in the parameters. Draws depend only on seed and i.

        Whether oneDNN has a backward pass for batch norm fused with ReLU depends on the widths and on the kernels that
        it picks for the machine, and next to grouped convs it has one that gives different gradients. So the first
        batch is also run on a block without fusion; if the gradients differ, the step continues with that block.
        """
        if self._is_tried:
            return self._backward(x, y, i, seed)
        state, self._is_tried = {k: v.asnumpy() for k, v in self.state().items()}, True
        try:
            self._backward(x, y, i, seed)
            fused = self._gradients()
        except mx.MXNetError:
            fused = None
        loss = self._again(state, x, y, i, seed, fused=False)
        is_right = fused is not None and _alike(fused, self._gradients())
        _TRIED[_widths(self.wide)] = is_right
        return self._again(state, x, y, i, seed, fused=True) if is_right else loss

    def _again(self, state: Mapping[str, np.ndarray], x, y, i: int, seed: int, fused: bool) -> mx.nd.NDArray:
        """Run `_backward` on a new block, restored to this state."""
        self._build(fused)
        gc.collect()  # the old block is full of reference cycles, and holds the memory of a whole step
        self.restore(state)
        return self._backward(x, y, i, seed)

    def _gradients(self) -> List[np.ndarray]:
        mx.nd.waitall()  # operators run asynchronously: their errors are raised here
        return [p.data().grad.asnumpy() for p in self._params.values() if p.grad_req != "null"]

    def _backward(self, x: mx.nd.NDArray, y: mx.nd.NDArray, i: int, seed: int) -> mx.nd.NDArray:
        seed_dropout(self._net, seed, i)
        loss = self.objective(self.block, x, y, seed, i)
        loss.backward(self._head_gradient(loss))
        return loss

    def _head_gradient(self, loss: mx.nd.NDArray) -> Optional[mx.nd.NDArray]:
        return None

    def outputs(self, x: np.ndarray) -> np.ndarray:
        """The block's predictions for images of shape (n, 3, H, W)."""
        return self.block(mx.nd.array(x, device())).asnumpy()

    def state(self) -> Dict[str, mx.nd.NDArray]:
        """Parameters, running statistics, the optimiser's state and the width that groups are padded to."""
        return {
            **{NET + k: p.data() for k, p in self._params.items()},
            **{OPTIMISER + k: v for k, v in self.optimiser.state().items()},
            WIDTH: mx.nd.array([self.width], device()),  # MXNet checks all of a state together, on one device
        }

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """See `Step`."""
        if int(state[WIDTH][0]) != self.width:  # saved on a machine with other kernels
            self.width = int(state[WIDTH][0])
            self.wide, self._places = padded(self._net, self.width)
            self._build(fused=False)
        self._set(_part(state, NET))
        self.optimiser.restore({k: mx.nd.array(v, device(), v.dtype) for k, v in _part(state, OPTIMISER).items()})

    def load(self, net: Network) -> None:
        """Load the values of a network with the same graph; the optimiser's state stays as it is."""
        self._set(padded(net, self.width)[0].arrays)

    def _set(self, arrays: Mapping[str, np.ndarray]) -> None:
        for name, value in arrays.items():
            self._params[name].set_data(mx.nd.array(value, device(), self._params[name].dtype))

    def network(self) -> Network:
        """See `Step`."""
        return self._own(from_block(self.wide, self.block).arrays)

    def _own(self, arrays: Mapping[str, np.ndarray]) -> Network:
        """The network with the values of its own channels, without idle ones, taken from those of `wide`."""
        return self._net.with_arrays({k: v[self._places[k]] if k in self._places else v for k, v in arrays.items()})


class MixedStep(OrdinaryStep):
    """A step computed in float16 (on a GPU), with float32 master weights and a loss scale (see `MixedSGD`)."""

    dtype = "float16"
    optimiser: MixedSGD

    def _build(self, fused: bool) -> None:
        super()._build(fused)
        self.optimiser.take(self.wide)

    def _head_gradient(self, loss: mx.nd.NDArray) -> mx.nd.NDArray:
        return mx.nd.full(loss.shape, self.optimiser.loss_scale, loss.context)

    def state(self) -> Dict[str, mx.nd.NDArray]:
        """The state of an ordinary step, with the masters in place of their rounded copies."""
        return {**super().state(), **{NET + k: v for k, v in self.optimiser.masters.items()}}

    def _set(self, arrays: Mapping[str, np.ndarray]) -> None:
        super()._set(arrays)
        self.optimiser.take(self.wide.with_arrays(arrays))

    def network(self) -> Network:
        """The network with the masters' values."""
        masters = {k: v.asnumpy() for k, v in self.optimiser.masters.items()}
        return self._own({**from_block(self.wide, self.block).arrays, **masters})


class ProximalStep(OrdinaryStep):
    """GCP's regularise step (eq. 6): frozen statistics, proximal gradient on scales, shifts and the output layer.

    `penalties`: lambda times c_g, per group.
    """

    def __init__(
        self, net: Network, objective: Objective, penalties: Mapping[str, float], momentum: float, seed: int = 0
    ) -> None:
        def optimiser(block) -> ProximalSGD:
            return ProximalSGD(self.wide, block, penalties, momentum)

        super().__init__(net, objective, optimiser, seed, scale_arrays(net), frozen_statistics=True)


def seed_dropout(net: Network, seed: int, i: int) -> None:
    """Seed dropout in batch i from the seed, i and the rank alone, so that a resumed run draws the same.

    Only dropout uses MXNet's random generator, which is left alone in networks without dropout.
    """
    if any(n.op == "Dropout" for n in net.nodes):
        group = process_group()
        mx.random.seed(seeds.step_seed(seed, i, group.rank if group.world_size > 1 else None))


def scoring_step(net: Network, task: str) -> OrdinaryStep:
    """A step for computing the gradients of scales and shifts, with frozen statistics."""
    return OrdinaryStep(net, Objective(TASKS[task]), SGD, trainable=scale_arrays(net), frozen_statistics=True)


def random_step(net: Network, batch: int, lr: float = 0.1) -> Callable[[], None]:
    """A function to be timed, which makes an ordinary step on all weights, on the same random images each time."""
    step = OrdinaryStep(net, Objective(), lambda block: SGD(block, 0.9, 1e-4))
    x, y = step.objective.task.random_batch(net.input_shape, net.n_classes, batch)
    return lambda: step(x, y, 0, lr)


def _part(state: Mapping[str, np.ndarray], prefix: str) -> Dict[str, np.ndarray]:
    return {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}


def _alike(found: List[np.ndarray], right: List[np.ndarray]) -> bool:
    """Whether gradients differ by rounding only; values that are not finite never count as different."""
    least = 1e-3 * max(map(np.linalg.norm, right), default=0)  # below, all may be rounding: a shift before a norm
    return not any(np.linalg.norm(a - b) > 1e-3 * max(np.linalg.norm(b), least) for a, b in zip(found, right))


# Whether fused norms train correctly at these widths, so that GCP's next step at them need not try again.
_TRIED: Dict[tuple, bool] = {}


def _widths(net: Network) -> tuple:
    return net.name, net.input_shape, tuple(net.shapes)


def _aligned(net: Network) -> bool:
    """Whether all kernels lay out channels in blocks of 16: with AVX-512, if every conv's width is a multiple of 16.

    Grouped convs, except depthwise ones, have other kernels, so there it is False.
    """
    return has_avx512() and all(
        net.shapes[i][0][1] % 16 == 0 and int(n.literal("num_group", 1)) in (1, net.shapes[i][0][1])
        for i, n in enumerate(net.nodes)
        if n.op == "Convolution"
    )


def kernel_width() -> int:
    """The number of channels that the kernels of this process's device work on at once; 1 where not measured."""
    return 16 if device().device_type == "cpu" and has_avx512() else 1
