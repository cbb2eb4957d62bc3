"""Optimisers, which update parameters from gradients: SGD in float32 and in mixed precision."""

from __future__ import annotations

from typing import Dict, List, Optional, Protocol, Sequence, Set

import numpy as np

from gcp.backend.engine import mx
from gcp.errors import UserError
from gcp.graph.network import Network
from gcp.train.distributed import device

FINITE_ARRAYS = 200  # the most that `multi_all_finite` has room for


class DivergedError(UserError):
    """A training has diverged: after `steps` steps, the loss was no longer finite.

    `images` is the number of images that a method had used by then, if that is more than one training's.
    """

    steps, images = 0, 0


class Optimiser(Protocol):
    """Applies one step's gradients to a block; its state is plain arrays, so that checkpoints need no pickle."""

    def step(self, lr: float, batch: int) -> None:
        """Update the parameters from their gradients, which are sums over `batch` images."""

    def gradients(self) -> List[mx.nd.NDArray]:
        """The arrays that `step` reads gradients from; with several ranks, they are summed over the ranks in place."""

    def state(self) -> Dict[str, mx.nd.NDArray]:
        """Everything that the next step depends on, besides the parameters' values."""

    def restore(self, state: Dict[str, mx.nd.NDArray]) -> None:
        """Restore what `state` returned."""


class SGD:
    """SGD with momentum, plain or Nesterov; weight decay on weights only, not scales, shifts, biases (He et al. 2019).

    It makes one `sgd_mom_update` per array instead of Gluon's aggregated `multi_sgd_mom_update`, which took 3.5 times
    as long on a CPU (28 ms of a 104 ms step of ResNet-18 at 32 px, batch 64). `only` names the arrays to update, by
    default all that are trainable.
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
        """Update every array once."""
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
        """Each parameter's own gradient array."""
        return [p.grad() for p in self._params.values()]

    def state(self) -> Dict[str, mx.nd.NDArray]:
        """The velocities, by parameter name."""
        return self._velocity

    def restore(self, state: Dict[str, mx.nd.NDArray]) -> None:
        """Restore the velocities."""
        for name, value in self._velocity.items():
            value[:] = state[name]


class MixedSGD(SGD):
    """`SGD` on a float16 block, which updates float32 master copies of its arrays (Micikevicius et al. 2018).

    Gradients arrive multiplied by `loss_scale`, so that small ones are not lost below float16's range. A step whose
    gradients have overflowed is skipped and halves the scale; `GROWTH` steps in a row without overflow double it.
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
        """Set the masters to the network's own values, since the block's are rounded."""
        for name, value in self.masters.items():
            value[:] = net.arrays[name]

    def step(self, lr: float, batch: int) -> None:
        """Update every array, or skip the step if a gradient is not finite; to know which, it waits for the gradients.

        DivergedError: gradients overflow even at the smallest loss scale.
        """
        if not all_finite([p.grad() for p in self._params.values()]):
            self.loss_scale, self._n_good = self.loss_scale / 2, 0
            if self.loss_scale < self.LEAST:
                raise DivergedError(
                    f"gradients overflow float16 at every loss scale down to {self.LEAST:g}; lower "
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
        """The velocities and the loss scale; the masters are saved as the network's own values."""
        return {**super().state(), "loss scale": mx.nd.array([self.loss_scale, self._n_good], device())}

    def restore(self, state: Dict[str, mx.nd.NDArray]) -> None:
        """Restore what `state` returned."""
        super().restore(state)
        scale, n_good = state["loss scale"].asnumpy()
        self.loss_scale, self._n_good = float(scale), int(n_good)


def is_half(p) -> bool:
    """Whether a parameter of a block is of dtype float16."""
    return np.dtype(p.dtype) == np.float16


def all_finite(arrays: Sequence[mx.nd.NDArray]) -> bool:
    """Whether no array contains NaN or infinity; waits for the arrays to be computed."""
    by_dtype: Dict[np.dtype, List[mx.nd.NDArray]] = {}  # MXNet checks arrays of one dtype together
    for a in arrays:
        by_dtype.setdefault(np.dtype(a.dtype), []).append(a)
    # MXNet's operator has room for 200 pointers and writes any others out of bounds; ResNet-50 has more arrays.
    parts = [same[i : i + FINITE_ARRAYS] for same in by_dtype.values() for i in range(0, len(same), FINITE_ARRAYS)]
    found = [mx.nd.multi_all_finite(*part, num_arrays=len(part)) for part in parts]
    return bool(mx.nd.concat(*found, dim=0).asnumpy().all())


def check_dtype(dtype: str) -> None:
    """Raise a UserError if the device cannot train in this dtype."""
    if dtype == "float16" and device().device_type == "cpu":
        raise UserError(
            "dtype: float16 needs a GPU, and there is none here (on CPUs, MXNet has no float16 convolution "
            "or dense layer); set it to float32"
        )
