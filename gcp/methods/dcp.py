"""DCP: channels that tell classes apart, by gradients of auxiliary classifiers' losses and of layers' output errors.

Zhuang et al., "Discrimination-aware Channel Pruning for Deep Neural Networks", NeurIPS 2018, algorithms 1 and 2.
Differences here: the network is trained with all auxiliary losses at once instead of stage by stage; channels are added
several at a time, and their weights are trained by Adam, which needs no learning rate of its own for each layer; with
`where: all`, channels that are tied by additions are chosen by all their readers; the network is fine-tuned once at the
end, with the experiment's own recipe.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np
from pydantic import Field

from gcp.cost.base import Budget
from gcp.errors import UserError
from gcp.graph.network import Keep, Network, Widths
from gcp.graph.surgery import shrink
from gcp.methods.base import METHODS, Outcome, Problem, Run, whole_batches
from gcp.methods.layerwise import LayerwiseOptions, at_uniform_widths
from gcp.seeds import Stream

HELD = 2**29  # bytes of outputs that are held at a time: 1 MB for each of the 512 images that are seen by default


class DcpOptions(LayerwiseOptions):
    """The auxiliary classifiers, the training with them, and how channels are chosen."""

    n_classifiers: int = Field(2, ge=1, le=100, description="auxiliary classifiers, spread evenly over the blocks")
    epochs: float = Field(1.0, gt=0, le=10**4, description="epochs of training with the auxiliary losses, above 0")
    lr: float = Field(0.05, gt=0, le=1000, description="highest learning rate of that training, above 0")
    momentum: float = Field(0.9, ge=0, lt=1, description="in [0, 1)")
    wd: float = Field(5e-4, ge=0, le=1000, description="weight decay, 0 or more")
    lam: float = Field(1.0, ge=0, le=10**6, description="weight of a classifier's loss relative to a layer's error")
    rounds: int = Field(4, ge=1, le=10**4, description="number of rounds in which a group's channels are added")
    steps: int = Field(
        16, ge=0, le=10**6, description="training steps for the weights that read chosen channels, after each round"
    )
    weights_lr: float = Field(0.001, ge=0, le=1000, description="learning rate of Adam in these steps")

    def check(self, net: Network, budget: Budget) -> None:
        """See `MethodOptions`; also raises UserError if the network has no place for an auxiliary classifier."""
        from gcp.train.auxiliary import places

        super().check(net, budget)
        if not places(net, self.n_classifiers):
            wrong = f"network '{net.name}' has no residual block or ReLU for an auxiliary classifier to read"
            raise UserError(f"method dcp: {wrong}; choose another prune.method", "method.network")

    def label(self, cost: str) -> str:
        """The method's name in the literature."""
        return "DCP"

    def n_steps(self, n_batches: int) -> int:
        """The number of training steps with the auxiliary losses, given `n_batches` batches per epoch."""
        return max(1, round(self.epochs * n_batches))

    def n_images(self, n_train: int, batch: int, n_renewed: int = 0) -> int:
        """Images for the training with auxiliary losses, in addition to those of every layer-by-layer method."""
        return super().n_images(n_train, batch, n_renewed) + self.n_steps(-(-n_train // batch)) * batch


@METHODS.register("dcp", DcpOptions)
def dcp(problem: Problem, options: DcpOptions, run: Run) -> Outcome:
    """Train with auxiliary classifiers, then choose the channels of one group after another and train their readers.

    UserError: the task is not classification.
    """
    from gcp.train import checkpoints, loop, schedules
    from gcp.train.auxiliary import SummedObjective, places, with_classifiers
    from gcp.train.optimisers import SGD
    from gcp.train.steps import OrdinaryStep
    from gcp.train.tasks import TASKS, Classification

    seed, data, task = Stream.CLASSIFIERS.seed(problem.seed), problem.data, TASKS[problem.task]
    if not isinstance(task, Classification):
        wrong = f"its classifiers need image labels, which task '{problem.task}' does not have"
        raise UserError(f"method dcp: {wrong}; choose another prune.method", "method.task")
    n_steps = options.n_steps(data.train.n_batches(problem.batch))
    net = with_classifiers(problem.net, places(problem.net, options.n_classifiers), seed)

    def trained(checkpoint: Path) -> Tuple[Network, Dict]:
        objective = SummedObjective(task)
        step = OrdinaryStep(net, objective, lambda block: SGD(block, options.momentum, options.wd), seed)
        batches = loop.Batches(data.train, problem.batch, seed, problem.augment)
        rates = schedules.cosine(options.lr, n_steps)

        def say(**facts: Any) -> None:
            run.log("epoch", stage="dcp", **facts)

        loop.fit(step, batches, rates, name="auxiliary classifiers", checkpoint=checkpoint, log=say)
        return step.network(), {}

    whole, _ = checkpoints.run_once(run.path / "dcp-classifiers", trained)
    outcome = at_uniform_widths(problem, options, lambda widths: _pruned(problem, whole, widths, options, seed), run)
    return replace(outcome, images={"classifiers": n_steps * problem.batch, **outcome.images})


def _pruned(problem: Problem, whole: Network, widths: Widths, options: DcpOptions, seed: int) -> Network:
    """The trained network, without its classifiers, with some groups cut to these widths.

    The groups are cut one after another, from the image to the output.
    """
    from gcp.train.auxiliary import without_classifiers
    from gcp.train.loop import Batches

    n = whole_batches(options.n_images_seen, len(problem.data.train), problem.batch) // problem.batch
    batches = list(islice(Batches(problem.data.train, problem.batch, seed).since(0), n))
    net, keep = whole, {g.name: np.arange(g.size) for g in whole.groups}
    for name, width in widths.items():
        if width < len(keep[name]):
            net, keep = _cut_group(problem, whole, net, keep, name, width, options, batches)
    return without_classifiers(net)


def _cut_group(
    problem: Problem,
    whole: Network,
    net: Network,
    keep: Keep,
    name: str,
    width: int,
    options: DcpOptions,
    batches: List[Any],
) -> Tuple[Network, Keep]:
    """The network with one group cut to a smaller width and its readers trained for what is left; and the new `keep`.

    `keep`: the units of the whole network that are left in each group.
    """
    from gcp.train.auxiliary import PREFIX, Chooser
    from gcp.train.distributed import process_group
    from gcp.train.tasks import TASKS

    group, ranks = next(g for g in net.groups if g.name == name), process_group()
    readers = [layer for layer in group.consumers if not layer.startswith(PREFIX)]
    examples = _Examples(whole, readers, keep, batches)
    variances = ranks.all_reduce_floats([float(y.var()) for y in examples[0][2]]) / ranks.world_size
    chooser = Chooser(
        net,
        [(net.index[layer], 0) for layer in readers],
        np.maximum(variances, 1e-12),
        _next_classifier(net, max(net.index[layer] for layer in readers)),
        options.lam,
        TASKS[problem.task],
        options.weights_lr,
    )
    units = {net.weight(layer): _units(net, layer, group) for layer in readers}
    stays = _grown(chooser, examples, units, group.size, width, options)
    net = net.with_arrays(chooser.weights())
    small = shrink(net, {g.name: stays if g.name == name else np.arange(g.size) for g in net.groups}, problem.moved)
    return small, {**keep, name: keep[name][stays]}


class _Examples:
    """Batches of images and labels, repeated in a cycle, with the outputs of some layers in the whole network.

    Only outputs that the pruned network still has are included. They are cached up to `HELD` bytes, and computed again
    each time where all batches together take more.
    """

    def __init__(self, whole: Network, layers: Sequence[str], keep: Keep, batches: Sequence[Any]) -> None:
        from gcp.train.reconstruct import kept_outputs, tensors_of

        at = [whole.index[layer] for layer in layers]
        self._said, self._batches = tensors_of(whole, [(i, 0) for i in at]), batches
        self._kept = [kept_outputs(whole, whole.structure.calls[i], keep) for i in at]
        n_images = sum(len(x) for x, _ in batches)
        self._is_small = 4 * n_images * sum(int(np.prod(whole.shapes[i][0][1:])) for i in at) <= HELD
        self._held: Dict[int, List[np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> Tuple[Any, Any, List[np.ndarray]]:
        k = number % len(self)
        x, y = self._batches[k]
        said = self._held.get(k) or [tensor[:, kept] for tensor, kept in zip(self._said(x), self._kept)]
        if self._is_small:
            self._held[k] = said
        return x, y, said


def _grown(
    chooser: Any, examples: _Examples, units: Dict[str, np.ndarray], size: int, width: int, options: DcpOptions
) -> np.ndarray:
    """The indices of the channels that a group keeps, chosen in rounds starting from none.

    The chooser ends up with the weights for these channels, and 0 for the others. `units`: see `_units`, for each
    weight array by name.
    """
    before, chosen = chooser.weights(), np.zeros(size, bool)

    def masks() -> Dict[str, np.ndarray]:
        """For each weight, whether it reads a chosen channel or a channel of another group."""
        return {key: np.broadcast_to(_reads(units[key], chosen, w), w.shape) for key, w in before.items()}

    chooser.put({key: w * masks()[key] for key, w in before.items()})
    for number in range(1, options.rounds + 1):
        total = [np.zeros_like(w) for w in before.values()]
        for k in range(len(examples)):
            chooser.loss(*examples[k])
            total = [a + b for a, b in zip(total, chooser.gradients())]
        norms = sum(_by_unit(np.square(a, dtype=np.float64), of, size) for a, of in zip(total, units.values()))
        n_more = -(-width * number // options.rounds) - int(chosen.sum())
        had = masks()
        chosen[np.argsort(np.where(chosen, np.inf, -norms), kind="stable")[:n_more]] = True
        has = masks()
        # Newly chosen channels start with the weights that they had before.
        chooser.put({key: np.where(had[key], w, before[key] * has[key]) for key, w in chooser.weights().items()})
        for k in range(options.steps):
            chooser.loss(*examples[k])
            chooser.step(has)
    return np.flatnonzero(chosen)


def _next_classifier(net: Network, i: int) -> int:
    """The number of the output that is the first classifier behind node i; 0, the network's own, behind the last."""
    behind = [(at, k) for k, (at, _) in enumerate(net.outputs) if k and at > i]
    return min(behind)[1] if behind else 0


def _units(net: Network, layer: str, group: Any) -> np.ndarray:
    """For each input of a layer, within each of its conv groups: its unit number in the group, or -1 if not in it."""
    units = net.structure.calls[net.index[layer]].read - group.start
    return np.where((units >= 0) & (units < group.size), units, -1)


def _along_inputs(units: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The unit that each weight reads, broadcast over the taps; a conv group's outputs read its own inputs only."""
    groups = max(1, len(units) // weight.shape[1])
    of = np.repeat(units.reshape(groups, -1), len(weight) // groups, axis=0)  # outputs x inputs
    return of.reshape(*of.shape, *[1] * (weight.ndim - 2))


def _reads(units: np.ndarray, chosen: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """For each weight, whether the channel it reads is chosen or belongs to another group."""
    of = _along_inputs(units, weight)
    return (of < 0) | chosen[of]


def _by_unit(values: np.ndarray, units: np.ndarray, size: int) -> np.ndarray:
    """Values of weights, summed over the weights that read each unit; shape (size,)."""
    of = np.broadcast_to(_along_inputs(units, values), values.shape)
    return np.bincount(of[of >= 0], values[of >= 0], minlength=size)
