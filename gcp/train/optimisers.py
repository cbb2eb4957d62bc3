"""Updates from gradients: SGD in float32 and in mixed precision."""

from __future__ import annotations

from typing import Dict, List, Optional, Protocol, Sequence, Set

import numpy as np

from gcp.backend.engine import mx
from gcp.errors import UserError
from gcp.graph.network import Network
from gcp.train.distributed import device

FINITE_ARRAYS = 200  # as many as `multi_all_finite` has room for


class DivergedError(UserError):
    """The loss was no longer a finite number, after `steps` steps of a training.

    `images` is what a method had taken by then, if that is more than one training.
    """

    steps, images = 0, 0


class Optimiser(Protocol):
    """Applies one step's gradients to a block; its state is plain arrays, so that checkpoints need no pickle."""

    def step(self, lr: float, batch: int) -> None:
        """Update the parameters from their gradients, which are sums over `batch` images."""

    def gradients(self) -> List[mx.nd.NDArray]:
        """The arrays that `step` reads the gradients from; of several ranks, they are summed over all in place."""

    def state(self) -> Dict[str, mx.nd.NDArray]:
        """All that the next step depends on besides the parameters' values."""

    def restore(self, state: Dict[str, mx.nd.NDArray]) -> None:
        """Take over what `state` gave."""


class SGD:
    """SGD with momentum, or Nesterov's; weight decay on weights only, not on scales, shifts, biases (He et al. 2019).

    One `sgd_mom_update` per array instead of Gluon's aggregated `multi_sgd_mom_update`, which took 3.5 times as
    long on a CPU (28 ms of a 104 ms step of ResNet-18 at 32 px, batch 64).
    """

    UPDATES = {False: mx.nd.sgd_mom_update, True: mx.nd.nag_mom_update}

    def __init__(
        self, block, momentum: float = 0.9, wd: float = 0.0, nesterov: bool = False, only: Optional[Set[str]] = None
    ) -> None:
        self._update = self.UPDATES[nesterov]
        self._params = {
            k: p for k, p in block.collect_params().items() if p.grad_req != "null" and (only is None or k in only)
        }
        self._momentum = momentum
        self._wd = {k: wd if k.endswith("weight") else 0.0 for k in self._params}
        self._velocity = {k: mx.nd.zeros(p.shape, p.list_ctx()[0]) for k, p in self._params.items()}

    def step(self, lr: float, batch: int) -> None:
        """One update of every array."""
        for name, p in self._params.items():
            w = p.data()
            self._update(
                w,
                p.grad(),
                self._velocity[name],
                out=w,
                lr=lr,
                momentum=self._momentum,
                wd=self._wd[name],
                rescale_grad=1.0 / batch,
            )

    def gradients(self) -> List[mx.nd.NDArray]:
        """Each parameter's own."""
        return [p.grad() for p in self._params.values()]

    def state(self) -> Dict[str, mx.nd.NDArray]:
        """The velocities."""
        return self._velocity

    def restore(self, state: Dict[str, mx.nd.NDArray]) -> None:
        """Take over velocities."""
        for name, value in self._velocity.items():
            value[:] = state[name]


class MixedSGD(SGD):
    """`SGD` on a block of dtype float16: updates float32 masters of its arrays (Micikevicius et al. 2018).

    Gradients come multiplied by `loss_scale`, so that small ones are not lost below float16's range. A step whose
    gradients have overflowed is left out and halves the scale; GROWTH steps without that double it.
    """

    GROWTH = 2000
    LEAST, MOST = 2.0**-10, 2.0**16
    MIXED_UPDATES = {False: mx.nd.mp_sgd_mom_update, True: mx.nd.mp_nag_mom_update}

    def __init__(self, block, momentum: float = 0.9, wd: float = 0.0, nesterov: bool = False) -> None:
        super().__init__(block, momentum, wd, nesterov)
        self._mixed_update = self.MIXED_UPDATES[nesterov]
        self.masters = {k: p.data().astype("float32") for k, p in self._params.items() if is_half(p)}
        self.loss_scale, self._n_good = 128.0, 0

    def take(self, net: Network) -> None:
        """Take over the network's own values: the block's are rounded."""
        for name, value in self.masters.items():
            value[:] = net.arrays[name]

    def step(self, lr: float, batch: int) -> None:
        """One update of every array, or none. Waits for the gradients: whether they are finite decides what follows."""
        if not all_finite([p.grad() for p in self._params.values()]):
            self.loss_scale, self._n_good = self.loss_scale / 2, 0
            if self.loss_scale < self.LEAST:
                raise DivergedError(
                    f"gradients are beyond float16 at every loss scale down to {self.LEAST:g}; lower "
                    "the learning rate, or set dtype to float32"
                )
            return
        for name, p in self._params.items():
            w, master = p.data(), self.masters.get(name)
            how = dict(lr=lr, momentum=self._momentum, wd=self._wd[name], rescale_grad=1.0 / (batch * self.loss_scale))
            if master is None:
                self._update(w, p.grad(), self._velocity[name], out=w, **how)
            else:
                self._mixed_update(w, p.grad(), self._velocity[name], master, out=w, **how)
        self._n_good += 1
        if self._n_good >= self.GROWTH and self.loss_scale < self.MOST:
            self.loss_scale, self._n_good = self.loss_scale * 2, 0

    def state(self) -> Dict[str, mx.nd.NDArray]:
        """Velocities and the loss scale; the masters are the network's own values."""
        return {**super().state(), "loss scale": mx.nd.array([self.loss_scale, self._n_good])}

    def restore(self, state: Dict[str, mx.nd.NDArray]) -> None:
        """Take over what `state` gave."""
        super().restore(state)
        scale, n_good = state["loss scale"].asnumpy()
        self.loss_scale, self._n_good = float(scale), int(n_good)


def is_half(p) -> bool:
    """Whether a parameter of a block is of dtype float16."""
    return np.dtype(p.dtype) == np.float16


def all_finite(arrays: Sequence[mx.nd.NDArray]) -> bool:
    """Whether no array holds NaN or an infinity; waits for them."""
    by_dtype: Dict[np.dtype, List[mx.nd.NDArray]] = {}  # MXNet looks at arrays of one dtype together
    for a in arrays:
        by_dtype.setdefault(np.dtype(a.dtype), []).append(a)
    # MXNet's operator keeps 200 pointers and writes the others beyond its end: ResNet-50 has more arrays than that.
    parts = [same[i : i + FINITE_ARRAYS] for same in by_dtype.values() for i in range(0, len(same), FINITE_ARRAYS)]
    found = [mx.nd.multi_all_finite(*part, num_arrays=len(part)) for part in parts]
    return bool(mx.nd.concat(*found, dim=0).asnumpy().all())


def check_dtype(dtype: str) -> None:
    """UserError where the device cannot train in it."""
    if dtype == "float16" and device().device_type == "cpu":
        raise UserError(
            "dtype: float16 needs a GPU, and there is none here (for CPUs MXNet has no convolution and no "
            "dense layer in float16); set it to float32"
        )
