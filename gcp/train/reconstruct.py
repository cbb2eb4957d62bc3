"""Least-squares reconstruction after pruning: each layer's weights are fitted to its outputs before the cut.

Layers are fitted one at a time, from the image to the outputs, each on its inputs in the pruned network, so that it
also makes up for errors that the layers before it could not correct (He, Zhang & Sun, "Channel Pruning for Accelerating
Very Deep Neural Networks", ICCV 2017, eq. 5 without its choice of channels; Luo, Wu & Lin, "ThiNet", ICCV 2017, eq. 7).
No labels and no gradients are needed.
"""

from __future__ import annotations

import warnings
from itertools import islice
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from scipy import linalg

from gcp.backend.blocks import to_block, to_symbol
from gcp.backend.engine import gluon, mx
from gcp.graph.channels import Call, Tensor, is_norm
from gcp.graph.network import Network, residual_branches
from gcp.graph.surgery import alive_units
from gcp.train.distributed import device, process_group
from gcp.train.loop import Batches

Moments = Tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # see `Sums.moments`

POSITIONS = 10  # of a layer's outputs sampled per image; neighbouring ones are nearly redundant
MEMORY = 10**6  # bytes per image of the unpruned network's outputs that are held at a time
RIDGE = 0.01  # the ridge penalty towards the previous weights, relative to the mean variance of the inputs


def reconstruct(net: Network, small: Network, keep: Mapping[str, Sequence[int]], batches: Batches, n: int) -> Network:
    """The pruned network `small` with its convs and dense layers fitted to their outputs in `net`, the unpruned one.

    `keep` holds the kept units, as `shrink` takes them; `n` batches of images are used, at `POSITIONS` random positions
    of each image. The mean residual is added to a layer's bias or, if it has none, absorbed by the running mean of a
    batch norm that alone reads the layer. Transposed, deformable and three-dimensional convs, and arrays that several
    layers share, are left unchanged.
    """
    images = [x for x, _ in islice(batches.since(0), n)]
    calls = {call.node.name: call for call in net.structure.calls.values()}
    layers = [
        Layer(small, i, kept_outputs(net, calls[call.node.name], keep), batches.seed)
        for i, call in small.structure.calls.items()
        if call.node.name in calls and can_be_fitted(small, call)
    ]
    while layers:
        together = layers[: max(1, int(np.searchsorted(np.cumsum([layer.n_bytes for layer in layers]), MEMORY)))]
        outputs = tensors_of(net, [(net.index[layer.name], 0) for layer in together])
        wanted = [[] for _ in together]
        for number, x in enumerate(images):
            for layer, y, rows in zip(together, outputs(x), wanted):
                rows.append(layer.sampled(y[:, layer.kept], number))
        for layer, rows in zip(together, wanted):
            inputs, sums = tensors_of(small, [layer.call.node.inputs[0]]), Sums(layer, small)
            for number, (x, y) in enumerate(zip(images, rows)):
                sums.add(layer.read(inputs(x)[0], number), y)
            small = small.with_arrays(layer.fitted(net, small, *sums.solved()))
        layers = layers[len(together) :]
    return small


def can_be_fitted(net: Network, call: Call) -> bool:
    """Whether this is a two-dimensional conv or dense layer with arrays of its own that does not read the image."""
    if call.node.op not in ("Convolution", "FullyConnected") or call.shares or call.node.inputs[0][0] == net.data:
        return False
    dense = call.node.op == "FullyConnected"
    return len(call.out_shapes[0]) == (2 if dense else 4) and (not dense or bool(call.node.literal("flatten", True)))


def kept_outputs(net: Network, call: Call, keep: Mapping[str, Sequence[int]]) -> np.ndarray:
    """The indices of the outputs of a layer of the unpruned network that are kept."""
    alive, n = alive_units(net, keep), call.out_shapes[0][1]
    labels = call.outs[0].labels if call.outs[0] is not None else np.full(n, -1)
    return np.flatnonzero((labels < 0) | alive[labels])


class Layer:
    """A conv or dense layer of a pruned network: which of its outputs are sampled, and its fitted arrays.

    `kept`: the indices of the kept outputs of the same layer of the unpruned network.
    """

    def __init__(self, small: Network, i: int, kept: np.ndarray, seed: int) -> None:
        self.i, self.call, self.kept, self._seed = i, small.structure.calls[i], kept, seed
        self.name = self.call.node.name
        bias = small.bias(self.name)
        self.bias = None if bias is None else small.arrays[bias]
        self._places = self.call.out_shapes[0][2:]

    @property
    def n_bytes(self) -> int:
        """Bytes per image that the sampled outputs take."""
        return 4 * len(self.kept) * min(POSITIONS, int(np.prod(self._places, dtype=int)))

    def _at(self, n: int, number: int) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Indices of images (images, 1), rows and columns (images, positions); drawn per image without repetition."""
        height, width = self._places
        order = np.random.default_rng((self._seed, self.i, number)).random((n, height * width))
        rows, columns = np.divmod(np.argsort(order, axis=1)[:, :POSITIONS], width)
        return np.arange(n)[:, None], rows, columns

    def sampled(self, y: np.ndarray, number: int) -> np.ndarray:
        """The outputs of a batch at the sampled positions, shape (samples, outputs)."""
        if not self._places:
            return y
        image, rows, columns = self._at(len(y), number)
        return np.ascontiguousarray(y.transpose(0, 2, 3, 1)[image, rows, columns].reshape(-1, y.shape[1]))

    def read(self, x: np.ndarray, number: int) -> np.ndarray:
        """The inputs from which the sampled outputs are computed, shape (samples, inputs x taps)."""
        if not self._places:
            return x.reshape(len(x), -1)
        literal = self.call.node.literal
        kernel, stride = literal("kernel"), literal("stride", ()) or (1, 1)
        dilate, pad = literal("dilate", ()) or (1, 1), literal("pad", ()) or (0, 0)
        image, *at = self._at(len(x), number)
        x = np.pad(x, ((0, 0), (0, 0), *((p, p) for p in pad))).transpose(0, 2, 3, 1)
        rows, columns = (at[a][..., None] * stride[a] + np.arange(kernel[a]) * dilate[a] for a in range(2))
        read = x[image[..., None, None], rows[..., :, None], columns[..., None, :]]  # (images, places, kh, kw, inputs)
        return read.transpose(0, 1, 4, 2, 3).reshape(read.shape[0] * read.shape[1], -1)

    def weights(self, net: Network) -> np.ndarray:
        """The layer's weights in `net`, float64, shape (groups, inputs x taps, outputs)."""
        weight = net.arrays[net.weight(self.name)]
        groups = int(self.call.node.literal("num_group", 1)) if weight.ndim == 4 else 1
        return weight.reshape(groups, len(weight) // groups, -1).swapaxes(1, 2).astype(np.float64)

    def norm(self, net: Network) -> Optional[str]:
        """The batch norm whose running mean can absorb a constant in place of a missing bias; None if there is none."""
        return norm_behind(net, net.index[self.name]) if net.bias(self.name) is None else None

    def fitted(
        self, whole: Network, small: Network, weights: np.ndarray, left: np.ndarray, groups: Any = slice(None)
    ) -> Dict[str, np.ndarray]:
        """The arrays of `small` that change, by name: the layer's new `weights`, and what absorbs the residual `left`.

        `groups`: an index of the conv groups that are kept.
        """

        def of(outputs: np.ndarray) -> np.ndarray:
            return outputs.reshape(len(weights), -1)[groups].reshape(-1)

        name, bias, norm = small.weight(self.name), small.bias(self.name), self.norm(small)
        found = {name: weights[groups].swapaxes(1, 2).reshape(small.arrays[name].shape)}
        if bias is not None:
            found[bias] = of(left if self.bias is None else self.bias + left)
        if norm is not None:
            found[_mean(small, norm)] = of(whole.arrays[_mean(whole, norm)][self.kept] - left)
        return {key: np.ascontiguousarray(value, np.float32) for key, value in found.items()}


def _mean(net: Network, norm: str) -> str:
    """The name of a batch norm's running mean."""
    return net.nodes[net.nodes[net.index[norm]].inputs[3][0]].name


def norm_behind(net: Network, i: int) -> Optional[str]:
    """The batch norm that alone reads node i; None if there is none."""
    readers = net.readers[i, 0]
    return net.nodes[readers[0]].name if len(readers) == 1 and is_norm(net, readers[0]) else None


class Shortcut(NamedTuple):
    """The tensor to which the last layer of a residual branch is added, and the factors from its outputs to the sum."""

    tensor: Tensor
    scale: np.ndarray


def shortcut_of(net: Network, name: str) -> Optional[Shortcut]:
    """The shortcut that is added to a layer's outputs, directly or after a batch norm; None if there is none.

    It is also None if anything else reads these outputs, since that would receive the correction as well.
    """
    i, norm = net.index[name], norm_behind(net, net.index[name])
    end = i if norm is None else net.index[norm]
    shortcuts = dict(residual_branches(net))
    if (end, 0) not in shortcuts or len(net.readers[end, 0]) != 1:
        return None
    at, output = shortcuts[end, 0]
    if net.shapes[at][output] != net.shapes[end][0]:
        return None
    if norm is None:
        return Shortcut((at, output), np.ones(net.shapes[i][0][1]))
    node = net.nodes[end]
    gamma, _, _, variance = (net.arrays[net.nodes[j].name].astype(np.float64) for j, _ in node.inputs[1:])
    return Shortcut((at, output), gamma / np.sqrt(variance + float(node.literal("eps", 1e-3))))


def tensors_of(net: Network, tensors: Sequence[Tensor]) -> Callable[[mx.nd.NDArray], List[np.ndarray]]:
    """A function from a batch of images to these tensors of the network."""
    inside = to_symbol(net).get_internals()
    known = set(inside.list_outputs())
    names = [(f"{net.nodes[i].name}_output", o) for i, o in tensors]
    symbols = [inside[name if name in known else f"{name}{o}"] for name, o in names]
    params = to_block(net, device(), trainable=set()).collect_params()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "input type is not inferred": the input's type is known at the first call
        block = gluon.SymbolBlock(mx.sym.Group(symbols), mx.sym.var("data"), params=params)
    block.hybridize(static_alloc=True, static_shape=True)

    def outputs(x: mx.nd.NDArray) -> List[np.ndarray]:
        found = block(x)
        return [y.asnumpy() for y in (found if isinstance(found, (list, tuple)) else [found])]

    return outputs


class Sums:
    """Normal equations for a layer's target outputs given its inputs, per conv group, summed over the ranks.

    They are those of a ridge regression of the residual, around the weights that the layer has in `net`, with an
    intercept if an array can absorb it.
    """

    def __init__(self, layer: Layer, net: Network) -> None:
        self.before = layer.weights(net)
        self._bias = layer.bias
        self._centred = self._bias is not None or layer.norm(net) is not None
        groups, n_in, n_out = self.before.shape
        self._moments: Optional[Moments] = None
        self._n, self._sums = 0, [np.zeros((groups, n_in, n_in)), np.zeros((groups, n_in, n_out))]
        self._sums += [np.zeros((groups, n_in)), np.zeros((groups, n_out))]

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Add samples: the layer's inputs (n, inputs x taps) and its target outputs (n, outputs)."""
        groups, self._moments = len(self.before), None
        y = y if self._bias is None else y - self._bias
        x, y = (a.reshape(len(a), groups, -1).swapaxes(0, 1).astype(np.float64) for a in (x, y))
        r = y - x @ self.before
        self._n += x.shape[1]
        for total, more in zip(self._sums, (x.swapaxes(1, 2) @ x, x.swapaxes(1, 2) @ r, x.sum(1), r.sum(1))):
            total += more

    def moments(self) -> Moments:
        """Means over all samples of x x', x r', x and r, where r is the residual of the current weights.

        With an intercept, the first two are central moments. The result is cached until samples are added.
        """
        if self._moments is None:
            reduce = process_group().all_reduce_floats
            (n,) = reduce([self._n])
            xx, xr, x, r = (reduce(of.ravel()).reshape(of.shape) / n for of in self._sums)
            if self._centred:
                for square, mean in zip(xx, x):  # in place, since there may not be memory for two such matrices
                    linalg.blas.dger(-1.0, mean, mean, a=square.T, overwrite_a=True)
                xr -= x[:, :, None] * r[:, None, :]
            self._moments = xx, xr, x, r
        return self._moments

    def solved(self, rows: Optional[np.ndarray] = None) -> Tuple[np.ndarray, np.ndarray]:
        """The fitted weights, shape (groups, inputs x taps, outputs), and the mean residual, shape (outputs,).

        `rows`: the indices of the inputs x taps that are kept, the same in every conv group; all by default.
        """
        (xx, xr, x, r), before = self.moments(), self.before
        if rows is not None:
            gone = np.setdiff1d(np.arange(before.shape[1]), rows)
            # The contributions of the removed inputs are part of the residual, too.
            xr = xr[:, rows] + xx[:, rows[:, None], gone] @ before[:, gone]
            r = r + np.einsum("gi,gio->go", x[:, gone], before[:, gone])
            xx, x, before = xx[:, rows[:, None], rows], x[:, rows], before[:, rows]
        else:
            xx = xx.copy()
        variance = np.trace(xx, axis1=1, axis2=2) / xx.shape[1]
        diagonal = np.arange(xx.shape[1])
        xx[:, diagonal, diagonal] += RIDGE * np.maximum(variance, 1e-12)[:, None]
        change = np.stack([_solved(a, c) for a, c in zip(xx, xr)])
        left = (r - np.einsum("gi,gio->go", x, change)).reshape(-1) if self._centred else np.zeros(r.size)
        return before + change, left


def _solved(square: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The solution of linear equations with a positive definite matrix, which is overwritten.

    It is NaN where the matrix is not finite, because the network's outputs are not.
    """
    if not np.isfinite(square.sum()):
        return np.full(right.shape, np.nan)
    # The transpose of a symmetric matrix is the same matrix in the layout that LAPACK expects, so it is not copied.
    factor = linalg.cho_factor(square.T, lower=True, overwrite_a=True, check_finite=False)
    return linalg.cho_solve(factor, right, check_finite=False)
