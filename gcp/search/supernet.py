"""A supernet: shared weights of all architectures of a space, of which each step trains one.

Guo et al., "Single path one-shot neural architecture search with uniform sampling", ECCV 2020. Widths share weights as
in slimmable training: a narrow layer has the first channels of the widest. Layers that a rewrite changes (a fused
convolution, a larger kernel) have weights of their own. Running statistics are meaningless here: architectures are
compared by batch statistics.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Dict, Mapping, Optional, Tuple

import numpy as np

from gcp.backend.engine import mx
from gcp.graph.network import Network, auxiliary
from gcp.graph.surgery import cut, redrawn, resized
from gcp.search.space import KEPT_NETWORKS, Space
from gcp.seeds import slimmable_generator
from gcp.train.distributed import device
from gcp.train.losses import Objective
from gcp.train.optimisers import SGD
from gcp.train.steps import OrdinaryStep
from gcp.train.tasks import Task

VALUE, MOMENTUM = "value:", "momentum:"  # prefixes of the parts of a state


class Store:
    """Arrays of the widest architectures. Rewritten networks share an array if its kernel and its kind are the same."""

    def __init__(self, space: Space, seed: int) -> None:
        self._space, self._seed = space, seed
        self.arrays: Dict[str, np.ndarray] = {}
        # The last level of a decision about widths is the widest.
        widest = space.widths({**space.fixed, **{name: values[-1] for name, values in space.decisions.items()}})

        @lru_cache(maxsize=KEPT_NETWORKS)
        def wide(net: Network) -> Network:
            own = space.group_of(net)
            return redrawn(resized(net, {group: widest[own[group]] for group in net.widths}), seed)

        self._wide = wide

    def network(self, pattern: Mapping[str, Any]) -> Tuple[Network, Dict[str, Tuple[str, tuple]]]:
        """An architecture with its current weights, and where each of its arrays is in the store (key, index)."""
        net = self._space.rewritten(pattern)
        wide, widths, own = self._wide(net), self._space.widths(pattern), self._space.group_of(net)
        small, kept = cut(wide, {group: range(widths[own[group]]) for group in wide.widths})
        places = {}
        for name in small.arrays:
            value = wide.arrays[name]
            key = f"{name} {_kernel(value)}"
            self.arrays.setdefault(key, np.array(value))
            axes = [kept.get(name, {}).get(axis, np.arange(n)) for axis, n in enumerate(value.shape)]
            places[name] = key, np.ix_(*axes)
        return small.with_arrays({name: self.arrays[key][at] for name, (key, at) in places.items()}), places


def _kernel(value: np.ndarray) -> str:
    """What distinguishes arrays of the same name in different rewrites: kernel size, and whether it is depthwise."""
    is_depthwise = value.ndim > 2 and value.shape[1] == 1
    return "x".join(map(str, value.shape[2:])) + (" depthwise" if is_depthwise else "")


class SupernetStep:
    """Trains one random architecture after another, each for `hold` steps, on the store's weights. See `Step`."""

    def __init__(self, space: Space, task: Task, options: Any, seed: int) -> None:
        self._space, self._task, self._options, self._seed = space, task, options, seed
        self.store = Store(space, seed)
        self._momenta: Dict[str, np.ndarray] = {}
        self._own: Optional[OrdinaryStep] = None
        self._first, self._places = -1, {}

    def __call__(self, x: mx.nd.NDArray, y: mx.nd.NDArray, i: int, lr: float) -> mx.nd.NDArray:
        """See `Step`."""
        first = i // self._options.hold * self._options.hold
        if first != self._first:
            self.synchronise()
            rng = slimmable_generator(self._seed, first)
            self._take(self._space.pattern(self._space.random(1, rng)[0]))
            self._first = first
        return self._own(x, y, i, lr)

    def _take(self, pattern: Mapping[str, Any]) -> None:
        net, self._places = self.store.network(pattern)
        self._own = _Part(net, Objective(self._task), self._optimiser, self._seed)
        state = {}
        for name, value in self._own.optimiser.state().items():
            if name in self._places:
                key, at = self._places[name]
                state[name] = self._momenta.setdefault(key, np.zeros_like(self.store.arrays[key]))[at]
            else:
                state[name] = value.asnumpy()
        self._own.optimiser.restore({k: mx.nd.array(v, device()) for k, v in state.items()})

    def _optimiser(self, block) -> SGD:
        return SGD(block, self._options.momentum, self._options.wd)

    def synchronise(self) -> None:
        """Write what the current architecture has learnt back into the store."""
        if self._own is None:
            return
        net = self._own.network()
        fixed = auxiliary(net)
        for name, (key, at) in self._places.items():
            if name not in fixed:
                self.store.arrays[key][at] = net.arrays[name]
        for name, value in self._own.optimiser.state().items():
            if name in self._places:
                key, at = self._places[name]
                self._momenta[key][at] = value.asnumpy()

    def state(self) -> Dict[str, mx.nd.NDArray]:
        """See `Step`."""
        self.synchronise()
        found = {VALUE + key: mx.nd.array(value) for key, value in self.store.arrays.items()}
        return {**found, **{MOMENTUM + key: mx.nd.array(value) for key, value in self._momenta.items()}}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """See `Step`."""
        self._own, self._first = None, -1
        self.store.arrays = {k[len(VALUE) :]: np.array(v) for k, v in state.items() if k.startswith(VALUE)}
        self._momenta = {k[len(MOMENTUM) :]: np.array(v) for k, v in state.items() if k.startswith(MOMENTUM)}

    def network(self) -> Network:
        """The network with the space's fixed decisions, and with weights from the store."""
        self.synchronise()
        return self.store.network(self._space.fixed)[0]


class _Part(OrdinaryStep):
    """A step for a network that is trained for a few batches only."""

    tries_fused = False
    width = 1  # no idle channels: arrays are laid out as in the store
