"""What networks are trained for: a task is a loss, its metrics, and how they are measured on a split."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Callable, Protocol, Sequence, Tuple, Union

import numpy as np

from gcp.backend.blocks import to_block
from gcp.backend.engine import mx
from gcp.data.base import Dataset, Split
from gcp.graph.network import Network
from gcp.registry import Registry
from gcp.train.distributed import device, process_group

Model = Union[Network, Callable[[np.ndarray], np.ndarray]]


class Task(Protocol):
    """A loss and its metrics. A new task is one such class, registered by name in `TASKS`."""

    metric: str  # the metric by which networks are compared; larger is better

    def loss(self, output: mx.nd.NDArray, labels: mx.nd.NDArray, smoothing: float = 0.0) -> mx.nd.NDArray:
        """The loss per image, shape (batch,)."""

    def distilled_loss(self, output: mx.nd.NDArray, taught: mx.nd.NDArray, temperature: float) -> mx.nd.NDArray:
        """The loss per image, shape (batch,), against a teacher's output."""

    def evaluate(self, model: Model, split, batch: int = 100) -> dict:
        """The metrics of a model on a split: plain numbers by name, among them `loss` and `n_eval`."""

    def random_batch(self, shape: Sequence[int], n_classes: int, size: int) -> Tuple[mx.nd.NDArray, mx.nd.NDArray]:
        """Random images of this shape and random labels, for timing steps."""

    def labelled(self, data: Dataset, net: Network) -> Dataset:
        """The data with labels, taken from `net`, the network that an experiment starts from, if need be."""


TASKS: Registry[Task] = Registry("task")


class Classification:
    """One label per image: cross entropy, top-1 and top-5 accuracy."""

    metric = "top1"

    def loss(self, output: mx.nd.NDArray, labels: mx.nd.NDArray, smoothing: float = 0.0) -> mx.nd.NDArray:
        """Cross entropy per image, shape (batch,), against labels smoothed towards the uniform distribution."""
        log_p = mx.nd.log_softmax(output)
        loss = -mx.nd.pick(log_p, labels)
        return loss if smoothing == 0 else (1 - smoothing) * loss - smoothing * log_p.mean(axis=1)

    def distilled_loss(self, output: mx.nd.NDArray, taught: mx.nd.NDArray, temperature: float) -> mx.nd.NDArray:
        """T^2 KL(softmax(taught / T) || softmax(output / T)) per image (Hinton et al. 2015, section 2)."""
        log_p = mx.nd.log_softmax(taught / temperature)
        log_q = mx.nd.log_softmax(output / temperature)
        return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(axis=1)

    def evaluate(self, model: Model, split, batch: int = 100) -> dict:
        """Top-1 and top-5 accuracy (fractions), mean cross entropy and the number of images of a split.

        `model` is a network, or any function from images (n, 3, H, W) to logits (n, classes). Correct and evaluated
        images are each summed and divided once, since the last batch can be short; with several ranks, each takes a
        part of every batch. The loss is None if it is not finite.
        """
        group = process_group()
        outputs = predictor(model) if isinstance(model, Network) else model
        sums = np.zeros(4)  # images, those correct at top 1 and within the top 5, summed cross entropy
        for x, y, n in split.batches(batch * group.world_size, part=group.part):
            if n:  # a rank's part of a short batch can be padding only
                sums += self._sums(outputs(x)[:n].astype(np.float64), y[:n])
        seen, top1, top5, loss = group.all_reduce_floats(sums).tolist()
        return {
            "top1": top1 / seen,
            "top5": top5 / seen,
            "loss": loss / seen if math.isfinite(loss) else None,
            "n_eval": int(seen),
        }

    @staticmethod
    def _sums(output: np.ndarray, y: np.ndarray) -> Tuple[int, int, int, float]:
        top = output.max(1, keepdims=True)
        log_z = top[:, 0] + np.log(np.exp(output - top).sum(1))
        of_label = output[np.arange(len(y)), y]
        # An image is correct if fewer than k classes score above its label; ties go by class index, as in argmax. What
        # is not a finite number is larger than nothing, and would make every label the best.
        above = (output > of_label[:, None]).sum(1) + (
            (output == of_label[:, None]) & (np.arange(output.shape[1]) < y[:, None])
        ).sum(1)
        above = np.where(np.isfinite(output).all(1), above, 5)
        return len(y), (above < 1).sum(), (above < 5).sum(), (log_z - of_label).sum()

    def random_batch(self, shape: Sequence[int], n_classes: int, size: int) -> Tuple[mx.nd.NDArray, mx.nd.NDArray]:
        """Normally distributed images and uniformly distributed labels, the same at every call."""
        rng, ctx = np.random.default_rng(0), device()
        x = mx.nd.array(rng.standard_normal((size, *shape)), ctx)
        return x, mx.nd.array(rng.integers(0, n_classes, size), ctx)

    def labelled(self, data: Dataset, net: Network) -> Dataset:
        """The data unchanged, since they have labels."""
        return data


class Agreement(Classification):
    """Without labels: the prediction of the network that an experiment starts from counts as correct."""

    def labelled(self, data: Dataset, net: Network) -> Dataset:
        """The data with every image labelled by the class that the network finds most likely."""
        outputs = predictor(net)

        def split(own: Split) -> Split:
            found = [outputs(x)[:n].argmax(1) for x, _, n in own.batches(100)]
            labels = np.zeros_like(own.labels)
            labels[own.rows] = np.concatenate(found)
            return replace(own, labels=labels)

        return replace(data, train=split(data.train), validation=split(data.validation), test=split(data.test))


CLASSIFICATION = TASKS.register("classification")(Classification())
TASKS.register("agreement")(Agreement())


def predictor(net: Network) -> Callable[[np.ndarray], np.ndarray]:
    """The network as a function from images to outputs, on this process's device."""
    block = to_block(net, device(), trainable=set())
    return lambda x: block(mx.nd.array(x, device())).asnumpy()
