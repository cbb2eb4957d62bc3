"""Slimmable training: one network with shared weights, in which each layer's first channels form narrower networks.

Yu & Huang, "Universally slimmable networks and improved training techniques", ICCV 2019; Berman et al., "AOWS", CVPR
2020, section 3.2. Each step trains the widest network on the labels, and the narrowest and one of random widths on the
widest one's outputs. There are two differences. Widths are drawn per batch, and the network is cut to them; the authors
draw them per image and silence channels, which costs three steps of the widest network, lets batch norms see images of
all widths at once, and leaves silenced channels constant after a depthwise convolution. And the widest network is
trained on only a part of each batch; on the rest, the narrow ones learn from the labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from gcp.backend.blocks import to_block
from gcp.backend.engine import autograd, memory, mx
from gcp.graph.network import Network, Widths
from gcp.graph.surgery import cut
from gcp.seeds import slimmable_generator
from gcp.train.distributed import device, process_group
from gcp.train.optimisers import SGD, Optimiser
from gcp.train.steps import OrdinaryStep, seed_dropout
from gcp.train.tasks import Task

HISTORY = "history"  # the key of one part of a state


@dataclass(frozen=True)
class Drawn:
    """Widths that were trained, a row for each step, and their excess loss over the widest network.

    `levels`: indices of levels, shape (steps, groups). `differences`: shape (steps,), the loss on the labels minus that
    of the widest network on the same images.
    """

    levels: np.ndarray
    differences: np.ndarray


# For each group, the probabilities of its levels, given the number of the step and all that was drawn before it.
# None: all levels are equally likely.
Policy = Callable[[int, Drawn], Optional[Mapping[str, np.ndarray]]]


@dataclass(frozen=True)
class Sampling:
    """What a slimmable step trains. `levels[group]`: the group's widths, ascending; the last is the network's own.

    New widths are drawn every `hold` steps, since a block has to be built for them. `policy` is called every `renew`
    steps, a multiple of `hold`. The widest network is trained on the fraction `share` of each batch.
    """

    levels: Mapping[str, Sequence[int]]
    hold: int = 4
    share: float = 0.5
    policy: Policy = lambda step, drawn: None
    renew: int = 48


class SlimmableStep:
    """Trains a network of the largest widths so that its first channels form networks of all smaller widths.

    `optimiser` makes an optimiser of all weights for a block. The gradients of the three networks are added, each
    scaled to a sum over the whole batch. See `Step`.
    """

    def __init__(
        self, net: Network, task: Task, optimiser: Callable[[object], Optimiser], sampling: Sampling, seed: int = 0
    ) -> None:
        self._net, self._task, self._sampling, self._seed = net, task, sampling, seed
        self._widest = _Widest(net, _KeptOutput(task), optimiser, seed)
        self._narrowest = self._cut({g: of[0] for g, of in sampling.levels.items()})
        self._held: Tuple[int, Optional[_Narrow]] = -1, None  # the first step that uses the network, and the network
        self._history: List[np.ndarray] = []  # per step: the level indices and the loss difference
        self._pending: List[Tuple[np.ndarray, mx.nd.NDArray]] = []
        self._probabilities: Tuple[int, Optional[Mapping[str, np.ndarray]]] = -1, None

    def __call__(self, x: mx.nd.NDArray, y: mx.nd.NDArray, i: int, lr: float) -> mx.nd.NDArray:
        """See `Step`. The loss is that of the network of random widths, against its training targets."""
        chosen, n = self.choice(i), max(1, round(self._sampling.share * len(x)))
        self._widest.weight = len(x) / n
        reference = self._widest.backward(x[:n], y[:n], i, self._seed).mean()
        taught = self._widest.objective.output
        narrow = self._narrow(i, chosen)
        loss = narrow.backward(x, (y, taught), i, self._seed)
        self._pending.append((chosen, self._task.loss(narrow.objective.output[:n], y[:n]).mean() - reference))
        self._narrowest.load_first()
        self._narrowest.backward(x, (y, taught), i, self._seed)
        for each in (narrow, self._narrowest):
            each.add_gradients()
        self._widest.update(lr, len(x))
        return loss

    def choice(self, i: int) -> np.ndarray:
        """The level index of each group at step i, shape (groups,)."""
        first = i // self._sampling.hold * self._sampling.hold
        p, rng = self._policy(first), slimmable_generator(self._seed, first)
        return np.array([rng.choice(len(of), p=None if p is None else p[g]) for g, of in self._sampling.levels.items()])

    def _policy(self, i: int) -> Optional[Mapping[str, np.ndarray]]:
        """The levels' probabilities at step i, which depend on what was drawn before the last multiple of `renew`."""
        at = i // self._sampling.renew * self._sampling.renew
        if self._probabilities[0] != at:
            self._probabilities = at, self._sampling.policy(at, self.drawn(at))
        return self._probabilities[1]

    def drawn(self, n: Optional[int] = None) -> Drawn:
        """What the first n steps have drawn; all steps by default."""
        self._settle()
        rows = np.array(self._history[:n], np.float32).reshape(-1, len(self._sampling.levels) + 1)
        return Drawn(rows[:, :-1].astype(np.int64), rows[:, -1].astype(np.float64))

    def _settle(self) -> None:
        """Move the loss differences that devices have computed into the history, averaged over the ranks."""
        if self._pending:
            group, found = process_group(), [float(of.asscalar()) for _, of in self._pending]
            found = group.all_reduce_floats(found) / group.world_size
            self._history += [np.append(chosen, d).astype(np.float32) for (chosen, _), d in zip(self._pending, found)]
            self._pending.clear()

    def _narrow(self, i: int, chosen: np.ndarray) -> "_Narrow":
        """The network at these levels, with the current weights."""
        first = i // self._sampling.hold * self._sampling.hold
        if self._held[0] != first:
            widths = {g: of[k] for k, (g, of) in zip(chosen, self._sampling.levels.items())}
            self._held = -1, None  # free its memory before the next one is allocated
            self._held = first, self._cut(widths)
        self._held[1].load_first()
        return self._held[1]

    def _cut(self, widths: Widths) -> "_Narrow":
        return _Narrow(self._widest, self._net, widths, self._task)

    def outputs(self, x: np.ndarray) -> np.ndarray:
        """The widest network's predictions for images of shape (n, 3, H, W)."""
        return self._widest.outputs(x)

    def synchronise(self) -> None:
        """See `Step`."""
        self._settle()
        self._widest.synchronise()

    def state(self) -> Dict[str, mx.nd.NDArray]:
        """The state of the widest network's step, and what was drawn."""
        self._settle()
        empty = np.zeros(len(self._sampling.levels) + 1, np.float32)  # MXNet has no empty arrays
        return {**self._widest.state(), HISTORY: mx.nd.array(np.stack([empty, *self._history]), device())}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """See `Step`."""
        self._widest.restore(state)
        self._narrowest = self._cut({g: of[0] for g, of in self._sampling.levels.items()})
        self._history, self._probabilities = list(state[HISTORY][1:]), (-1, None)
        self._held = -1, None

    def network(self) -> Network:
        """See `Step`."""
        return self._widest.network()


class _KeptOutput:
    """An objective: the task's loss. It keeps the output, for other networks to learn from."""

    def __init__(self, task: Task) -> None:
        self.task, self.output = task, None

    def __call__(self, block, x: mx.nd.NDArray, y: mx.nd.NDArray, seed: int, step: int) -> mx.nd.NDArray:
        with autograd.record():
            output = block(x)
            loss = self.task.loss(output, y)
        self.output = output.detach()
        return loss


class _Taught:
    """An objective: the loss against another network's outputs on the first images, and against labels on the others.

    It keeps the output, for comparison.
    """

    def __init__(self, task: Task) -> None:
        self.task, self.output = task, None

    def __call__(self, block, x: mx.nd.NDArray, y: Tuple[mx.nd.NDArray, mx.nd.NDArray], seed: int, step: int):
        labels, taught = y
        n = len(taught)
        with autograd.record():
            output = block(x)
            loss = self.task.distilled_loss(output[:n], taught, 1.0)
            if n < len(x):
                loss = mx.nd.concat(loss, self.task.loss(output[n:], labels[n:]), dim=0)
        self.output = output.detach()
        return loss


class _Widest(OrdinaryStep):
    """The step of the network that all others are cut from; its gradients are multiplied by `weight`."""

    weight = 1.0

    def _head_gradient(self, loss: mx.nd.NDArray) -> mx.nd.NDArray:
        return mx.nd.full(loss.shape, self.weight, loss.context)


class _Narrow(OrdinaryStep):
    """A step of the first channels of another step's network, which loads its values and adds to its gradients."""

    tries_fused = False  # building two more blocks for a few batches costs as much as fusing saves

    def __init__(self, widest: OrdinaryStep, net: Network, widths: Widths, task: Task) -> None:
        small, kept = cut(net, {g: range(n) for g, n in widths.items()})
        super().__init__(small, _Taught(task), lambda block: SGD(block, only=set()))
        self._pairs = []
        for name, p in self._params.items():
            if name in widest._params and p.grad_req != "null":
                of, places = _all_indices(widest, net, name), _all_indices(self, small, name)
                for axis, which in kept.get(name, {}).items():
                    of[axis] = of[axis][which]
                self._pairs.append(_Pair(name, widest, of, self, places))

    def load_first(self) -> None:
        """Load the current values of the first channels."""
        mx.nd.waitall()  # for operators that still use the values that the pairs overwrite
        for pair in self._pairs:
            pair.load()

    def add_gradients(self) -> None:
        """Add the gradients of the last backward pass to those of the widest network's first channels."""
        mx.nd.waitall()
        for pair in self._pairs:
            pair.add()


def _all_indices(step: OrdinaryStep, net: Network, name: str) -> List[np.ndarray]:
    """Per axis of a network's array, the indices of its values in the step's block, which also has idle channels."""
    places = step._places.get(name)
    return [np.arange(n) for n in net.arrays[name].shape] if places is None else [of.reshape(-1) for of in places]


class _Pair:
    """An array of the widest network, that of a narrow one, and the indices of the entries that they share, per axis.

    No operator may use either array while one of them is written to. In CPU memory, numpy does the writing: two
    operators for each of a hundred arrays took as long as half an ordinary step. The arrays are looked up at every
    call, since a step can rebuild its block with new ones.
    """

    has_memory: Optional[bool] = None  # whether numpy can write to the arrays; None: if the device is the CPU

    def __init__(
        self, name: str, widest: OrdinaryStep, of: List[np.ndarray], narrow: OrdinaryStep, places: List[np.ndarray]
    ) -> None:
        self._name, self._widest, self._narrow = name, widest, narrow
        if self.has_memory is None:
            self.has_memory = device().device_type == "cpu"
        self._is_block = all(np.array_equal(index, np.arange(len(index))) for index in (*of, *places))
        self._begin, self._end = (0,) * len(of), tuple(map(len, of))
        first = tuple(map(slice, self._end))  # of both arrays; numpy copies slices faster than indexed entries
        self._of, self._places = (first, first) if self._is_block else (np.ix_(*of), np.ix_(*places))

    def load(self) -> None:
        """Copy the shared values into the narrow array."""
        wide, small = (step._params[self._name].data() for step in (self._widest, self._narrow))
        if self.has_memory:
            memory(small)[self._places] = memory(wide)[self._of]
        elif self._is_block:
            self._assign(small, self._first(wide))
        else:
            _put(small, self._places, wide, self._of)

    def add(self) -> None:
        """Add the narrow array's gradient to the wide one's."""
        wide, small = (step._params[self._name].grad() for step in (self._widest, self._narrow))
        if self.has_memory:
            memory(wide)[self._of] += memory(small)[self._places]
        elif self._is_block:
            self._assign(wide, self._first(wide) + self._first(small))
        else:
            _put(wide, self._of, small, self._places, wide)

    def _first(self, array: mx.nd.NDArray) -> mx.nd.NDArray:
        return array if self._end == array.shape else mx.nd.slice(array, self._begin, self._end)

    def _assign(self, array: mx.nd.NDArray, block: mx.nd.NDArray) -> None:
        if self._end == array.shape:
            block.copyto(array)
        else:
            mx.nd._internal._slice_assign(array, block, self._begin, self._end, out=array)


def _put(into: mx.nd.NDArray, at: tuple, source: mx.nd.NDArray, where: tuple, beside: Optional[mx.nd.NDArray] = None):
    """Set entries of one array to those of another, plus the entries of `beside` at the same places, if given."""
    value = into.asnumpy()
    value[at] = source.asnumpy()[where] + (0 if beside is None else beside.asnumpy()[at])
    into[:] = mx.nd.array(value, device())


def loss_by_batch_statistics(net: Network, task: Task, batches: Sequence[Tuple[np.ndarray, np.ndarray]]) -> float:
    """The mean loss over batches of images and labels; batch norms use each batch's own statistics, as in training.

    Running statistics are meaningless in a network that was cut out of a slimmable one.
    """
    block, total, n = to_block(net, device(), trainable=set()), 0.0, 0
    for k, (x, y) in enumerate(batches):
        seed_dropout(net, 0, k)
        with autograd.train_mode():
            output = block(mx.nd.array(x, device()))
        total += float(task.loss(output, mx.nd.array(y, device())).sum().asscalar())
        n += len(x)
    return total / n
