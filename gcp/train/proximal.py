"""Proximal gradient: GCP's regularise step (eq. 6), on scales, shifts and the output layer, and network slimming's."""

from __future__ import annotations

from typing import Dict, List, Mapping, Tuple

import numpy as np

from gcp.backend.engine import autograd, mx
from gcp.graph.channels import is_norm
from gcp.graph.network import Network
from gcp.train import optimisers


class ProximalSGD:
    """Proximal gradient on scales and masks (eq. 6), plain SGD on everything else that is trainable.

    After each momentum step, `gamma <- sign(gamma) max(|gamma| - lr lam c_g, 0)`; `penalties` maps each group to lam
    c_g. The norms of a tied group share a mask m, `gamma_p = m gamma^_p`, `beta_p = m beta^_p`, which replaces gamma in
    the penalty. m starts at the square root of the summed squared scales, so that m^2 is the group's score where the
    consumers' weights have unit norm, and masks and scales have the same units. All scales form one flat vector, all
    shifts another and all masks a third, so that a step takes some 30 small operators whatever the network's depth.
    """

    def __init__(self, net: Network, block, penalties: Mapping[str, float], momentum: float) -> None:
        params = block.collect_params()
        scales = list(dict.fromkeys(n for g in net.groups for n in g.norms))
        norms = [net.norm_arrays(n) for n in scales]
        self._gammas = [params[gamma] for gamma, _ in norms]
        self._betas = [params[beta] for _, beta in norms if beta is not None]
        self._momentum = momentum
        own = {name for pair in norms for name in pair}
        self._rest = optimisers.SGD(block, momentum, only=set(params.keys()) - own)
        ctx = self._gammas[0].list_ctx()[0]
        self._outer = {"gamma": _joined_gradients(self._gammas)}
        if self._betas:  # none where every norm is a gate
            self._outer["beta"] = _joined_gradients(self._betas)

        # Each entry of the flat vectors has the slot of its mask; slot 0 is a constant 1, for units with one entry.
        # Entries that belong to no unit (-1) index the last element of both tables: slot 0, no penalty.
        units = [net.structure.units_of(net.index[n]) for n in scales]
        penalty = np.repeat([penalties[g.name] for g in net.groups], [g.size for g in net.groups])
        of = np.concatenate(units)
        tied = np.bincount(of[of >= 0], minlength=len(penalty)) > 1
        slot = np.append(np.where(tied, np.cumsum(tied), 0), 0)
        threshold = np.append(np.where(tied, 0.0, penalty), 0.0)
        beta_slots = [slot[u] for u, (_, beta) in zip(units, norms) if beta is not None]
        gamma, of_gamma = _joined(self._gammas), slot[of]
        m = np.zeros(1 + int(tied.sum()))
        np.add.at(m, of_gamma, gamma**2)
        m = np.where(m > 0, np.sqrt(m), 1.0)
        m[0] = 1.0

        def to_device(values: np.ndarray, dtype: str = "float32") -> mx.nd.NDArray:
            return mx.nd.array(values, ctx, dtype=dtype)

        self._vectors = {"gamma": to_device(gamma / m[of_gamma]), "mask": to_device(m)}
        self._slots = {"gamma": to_device(of_gamma, "int32")}
        self._threshold = {"gamma": to_device(threshold[of]), "mask": to_device(np.append(0.0, penalty[tied]))}
        if self._betas:
            of_beta = np.concatenate(beta_slots)
            self._vectors["beta"] = to_device(_joined(self._betas) / m[of_beta])
            self._slots["beta"] = to_device(of_beta, "int32")
        self._velocity = {k: mx.nd.zeros_like(v) for k, v in self._vectors.items()}
        self._written = {"gamma": _flat_views(self._gammas), "beta": _flat_views(self._betas)}
        self._tied = bool(tied.any())
        if self._tied:
            for v in self._vectors.values():
                v.attach_grad()

    def step(self, lr: float, batch: int) -> None:
        """Make one proximal-gradient update of scales, shifts and masks, and one SGD update of the rest."""
        outer = self._outer
        if self._tied:  # the chain rule through gamma = m gamma^, beta = m beta^
            with autograd.record():
                products = [self._vectors[k] * mx.nd.take(self._vectors["mask"], self._slots[k]) for k in outer]
            autograd.backward(products, list(outer.values()))
            gradients = {k: v.grad for k, v in self._vectors.items()}
        else:
            gradients = outer
        for key, gradient in gradients.items():
            value = self._vectors[key]
            mx.nd.sgd_mom_update(
                value,
                gradient,
                self._velocity[key],
                out=value,
                lr=lr,
                momentum=self._momentum,
                rescale_grad=1.0 / batch,
            )
            if key in self._threshold:
                shrunk = mx.nd.relu(mx.nd.abs(value) - lr * self._threshold[key])
                mx.nd.elemwise_mul(mx.nd.sign(value), shrunk, out=value)
        if self._tied:
            self._vectors["mask"][0:1] = 1.0
        self._write()
        self._rest.step(lr, batch)

    def gradients(self) -> List[mx.nd.NDArray]:
        """One flat array of the gradients of all scales, one of those of all shifts, and the arrays of the rest."""
        return [*self._outer.values(), *self._rest.gradients()]

    def _write(self) -> None:
        """Write scales and shifts, multiplied by their masks, back into the block's parameters."""
        for key in self._outer:
            value, (starts, outputs) = self._vectors[key], self._written[key]
            if self._tied:
                value = value * mx.nd.take(self._vectors["mask"], self._slots[key])
            if len(outputs) == 1:
                value.copyto(outputs[0])
            else:
                mx.nd._internal._split_v2(value, indices=starts, axis=0, out=outputs)

    def state(self) -> Dict[str, mx.nd.NDArray]:
        """The flat vectors, their velocities and the velocities of the rest."""
        return {
            **{f"value:{k}": v for k, v in self._vectors.items()},
            **{f"velocity:{k}": v for k, v in self._velocity.items()},
            **{f"rest:{k}": v for k, v in self._rest.state().items()},
        }

    def restore(self, state: Dict[str, mx.nd.NDArray]) -> None:
        """Restore what `state` returned."""
        for k in self._vectors:
            self._vectors[k][:] = state[f"value:{k}"]
            self._velocity[k][:] = state[f"velocity:{k}"]
        self._rest.restore({k[len("rest:") :]: v for k, v in state.items() if k.startswith("rest:")})


class SparseSGD(optimisers.SGD):
    """SGD on all weights, and soft thresholding of the scales of batch norm by `lr * penalty` after each step.

    Each scale is penalised by itself (Liu et al., ICCV 2017, eq. 1), even where an addition ties its channel to others.
    """

    def __init__(self, net: Network, block, penalty: float, momentum: float, wd: float) -> None:
        super().__init__(block, momentum, wd)
        names = {net.nodes[node.inputs[1][0]].name for i, node in enumerate(net.nodes) if is_norm(net, i)}
        self._penalty, self._scales = penalty, [p for name, p in self._params.items() if name in names]

    def step(self, lr: float, batch: int) -> None:
        """Update every array once, then threshold the scales."""
        super().step(lr, batch)
        for p in self._scales:
            value = p.data()
            mx.nd.elemwise_mul(mx.nd.sign(value), mx.nd.relu(mx.nd.abs(value) - lr * self._penalty), out=value)


def _flat_views(params) -> Tuple[Tuple[int, ...], List[mx.nd.NDArray]]:
    """The offset of each parameter in the flat vector of all of them, and a flat view of each one's memory."""
    starts = np.cumsum([0] + [int(np.prod(p.shape)) for p in params[:-1]])
    return tuple(starts.tolist()), [p.data().reshape(-1) for p in params]


def _joined_gradients(params) -> mx.nd.NDArray:
    """One flat vector into which the backward pass writes the gradients of all `params`, instead of their own arrays.

    It must be called before the block's first backward pass, which binds a static graph to the arrays that it finds.
    Joining the gradients in each step took 4.5 of 176 ms (ResNet-50, 64 px, batch 16). `p.data().grad` is then a view
    of the vector; `p.grad()` is still the previous array, which is no longer written.
    """
    sizes = [int(np.prod(p.shape)) for p in params]
    flat = mx.nd.zeros(sum(sizes), params[0].list_ctx()[0])
    ends = np.cumsum(sizes).tolist()
    parts = [flat[end - size : end].reshape(p.shape) for p, size, end in zip(params, sizes, ends)]
    autograd.mark_variables([p.data() for p in params], parts, "write")
    return flat


def _joined(params) -> np.ndarray:
    return np.concatenate([p.data().asnumpy().reshape(-1) for p in params]).astype(np.float64)
