"""What every operator does to channels, arrays and values: one class each, in one registry.

A class answers all questions that pruning asks about its operator: which channels its outputs have (`channels`), how
its attributes change when channels are removed or added (`attributes`), what it turns independent Gaussians into
(`moments`; constants are Gaussians of variance 0), what a constant added to a channel becomes (`shift`), whether a
positive factor passes (`homogeneous`), what a dropped channel has to be at its inputs (`demand`), and how many
multiply-accumulates each value of its weight takes (`positions`). Parameters and bytes follow from the arrays and
shapes whose axes `channels` labels. To add an operator, add a class: see docs/extending.md.

The channels of a tensor carry labels along one of its axes (`Channels`). Values per channel are arrays of the tensor's
rank, with length 1 along every axis on which they do not depend.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from scipy import special

from gcp.registry import Registry

if TYPE_CHECKING:
    from gcp.graph.channels import Call

OPERATORS: "Registry[Operator]" = Registry("operator")
TIES = "__ties__"  # how a grouped convolution ties its channels, where its sizes no longer determine this
# What a dropped channel has to be: anything, a constant of each position, one constant of all positions, or zero; see
# `Operator.demand`.
ANY, CONSTANT, EVEN, ZERO = range(4)
Count = Callable[[np.ndarray], int]  # labels -> number of these channels in the other network
LARGEST = float(np.finfo(np.float32).max)
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(32)


@dataclass(frozen=True)
class Channels:
    """Labels of a tensor's channels along `axis` (0 is the batch): one integer per channel, 0 for fixed channels."""

    axis: int
    labels: np.ndarray

    def spread(self, rank: int, values: Optional[np.ndarray] = None) -> np.ndarray:
        """The labels, or other values per channel, as an array of the tensor's rank."""
        values = self.labels if values is None else values
        return values.reshape((1,) * self.axis + (-1,) + (1,) * (rank - self.axis - 1))

    def even(self, shape: Sequence[int]) -> bool:
        """Whether values per channel of this shape depend on the channel alone."""
        return all(n == 1 for axis, n in enumerate(shape) if axis != self.axis)


class Gaussian(NamedTuple):
    """Means and variances of channels; a constant has variance 0. Unknown channels count as N(0, 1)."""

    mean: np.ndarray
    variance: np.ndarray


def register(*names: str):
    """Class decorator: registers the class for MXNet's operators of these names."""

    def add(cls):
        instance = cls()
        for name in names:
            OPERATORS.register(name)(instance)
        return cls

    return add


def operator(name: str) -> "Operator":
    """The operator of this name, or `UNKNOWN`, which stands for all operators without a class."""
    return OPERATORS[name] if name in OPERATORS else UNKNOWN


class Operator:
    """The default behaviour, that of most operators: input 0 passes through, channel by channel."""

    known = True
    weight: Optional[int] = None  # position of the weight among the inputs, for convolutions and dense layers
    is_norm = False
    is_addition = False
    in_place = False  # whether inference can overwrite an input that is not read afterwards with the output

    def channels(self, call: "Call") -> None:
        """Declare the labels of the outputs (`call.put`) and of arrays (`call.array`), and which labels are fixed."""
        call.passes()

    def attributes(self, call: "Call", count: Count) -> Dict[str, str]:
        """New values of the attributes that depend on numbers of channels."""
        return {}

    def moments(self, call: "Call", xs: Sequence[Gaussian]) -> List[Gaussian]:
        """Means and variances of the channels of each output, for inputs that are independent Gaussians."""
        return [xs[0]] * len(call.out_shapes)

    def additive(self, call: "Call") -> bool:
        """Whether a constant added to an input channel adds constants to the outputs, those that `shift` returns."""
        return False

    def shift(self, call: "Call", ds: Sequence[np.ndarray]) -> List[np.ndarray]:
        """What is added to each output when constants `ds[k]` are added to the channels of input k, if `additive`."""
        return [ds[0]] * len(call.out_shapes)

    def gather(self, call: "Call", xs: Sequence[np.ndarray]) -> List[np.ndarray]:
        """Values per channel of the inputs, carried over to the channels of each output; additions add them up."""
        return [xs[0]] * len(call.out_shapes)

    def homogeneous(self, call: "Call") -> bool:
        """Whether a positive factor on an input channel gives the same factor on the output channel."""
        return False

    def from_zero(self, call: "Call") -> int:
        """What an input channel of zeros gives: `ZERO`, a constant (`EVEN`), or what depends on the image (`ANY`)."""
        return ZERO

    def demand(self, call: "Call", wanted: int) -> List[int]:
        """What a dropped channel has to be at each input for it to be as `wanted` at the outputs."""
        return [wanted] * len(call.ins)

    def positions(self, call: "Call") -> int:
        """Number of multiply-accumulates per value of the weight, for one image."""
        return 0


# ---- convolutions and dense layers ----------------------------------------------------------------------------------


class Layer(Operator):
    """Produces new channels from those it reads, by a weight. `size`: name of the attribute that counts its outputs."""

    weight = 1
    size = "num_filter"
    out_axis = 0  # of the weight

    def from_zero(self, call: "Call") -> int:
        return ZERO if call.bias is None else EVEN

    def axis(self, call: "Call") -> Optional[int]:
        """The axis of input 0 along which its channels are read, None if every value has a weight of its own."""
        return 1

    def additive(self, call: "Call") -> bool:
        x, axis = call.ins[0], self.axis(call)
        return x is None or axis is None or x.axis == axis

    def demand(self, call: "Call", wanted: int) -> List[int]:
        """Constants, whose contributions can be moved; zeros if arrays are shared, as each call has other constants."""
        constant = CONSTANT if self.axis(call) is None else EVEN
        return [ZERO if call.shares else constant] + [ANY] * (len(call.ins) - 1)

    def attributes(self, call: "Call", count: Count) -> Dict[str, str]:
        return {self.size: str(count(call.outs[0].labels))}

    def read(self, call: "Call", x: np.ndarray) -> np.ndarray:
        """Values per channel of input 0, averaged over positions, as one value per input channel of the weight.

        Of dropped channels these are exact, because `demand` asks for the same constant at all positions.
        """
        return np.broadcast_to(x.mean(axis=(0, *range(2, x.ndim))), (call.shapes[0][1],))

    def taps(self, call: "Call", weight: np.ndarray) -> np.ndarray:
        """The weight as an array (groups, outputs per group, inputs per group, taps)."""
        return weight.reshape(1, len(weight), weight.shape[1], -1)

    def met(self, call: "Call") -> float:
        """The share of the taps that an output position meets, on average."""
        return 1.0

    def by_output(self, call: "Call", values: np.ndarray) -> np.ndarray:
        """Values per output channel as an array that broadcasts with the weight."""
        return values.reshape(-1, *(1,) * (len(call.shapes[self.weight]) - 1))

    def spread(self, call: "Call", values: np.ndarray) -> np.ndarray:
        """Values per output channel as an array of the output's rank."""
        return call.outs[0].spread(len(call.out_shapes[0]), values)

    def apply(self, call: "Call", by: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Per output, the sum of the inputs' values `x` weighted by `by`, shape (groups, outputs, inputs)."""
        x = x.reshape(by.shape[0], by.shape[2])
        some = x.any(axis=0)  # a float64 copy of all columns would take twice the memory of the weights
        by = by[:, :, some].astype(np.float64, copy=False)
        return self.spread(call, np.matmul(by, x[:, some, None]).reshape(-1))

    def lost(self, call: "Call", x: np.ndarray) -> np.ndarray:
        """What inputs with the constant values `x`, one per input of the weight, contribute to each output."""
        return self.apply(call, self.summed(call), x)

    def summed(self, call: "Call") -> np.ndarray:
        """The weight summed over the taps that a position meets: (groups, outputs per group, inputs per group)."""
        w, met = self.taps(call, call.value(self.weight)), self.met(call)
        return w[..., 0] if w.shape[3] == met == 1 else w.sum(3, dtype=np.float64) * met

    def moments(self, call: "Call", xs: Sequence[Gaussian]) -> List[Gaussian]:
        """Those of a weighted sum of independent inputs. With `call.exact`, only whether the sum varies matters."""
        rank = (1,) * len(call.out_shapes[0])
        if call.before_norm:  # the norm determines mean and variance itself
            return [Gaussian(np.zeros(rank), np.ones(rank))]
        bias = self.spread(call, call.value(call.bias).astype(np.float64)) if call.bias is not None else np.zeros(rank)
        inputs = self.read(call, xs[0].variance)
        w = self.taps(call, call.value(self.weight))
        if call.exact and call.made is not None:
            return [Gaussian(bias, self.spread(call, w.any(axis=(2, 3)).reshape(-1) + 0.0))]
        mean = self.apply(call, self.summed(call), self.read(call, xs[0].mean))
        return [Gaussian(mean + bias, self.apply(call, np.einsum("goit,goit->goi", w, w) * self.met(call), inputs))]

    def shift(self, call: "Call", ds: Sequence[np.ndarray]) -> List[np.ndarray]:
        return [self.lost(call, self.read(call, ds[0]))]


@register("Convolution", "Convolution_v1")
class Convolution(Layer):
    """Plain, grouped and depthwise convolutions with any number of spatial axes.

    A grouped convolution with more groups than inputs per group loses whole groups, and `num_group` falls. Otherwise
    each group loses the same number of channels: the groups are tied by position.
    """

    def ties(self, call: "Call") -> str:
        """How the channels are tied: `none`, `depthwise`, `groups` or `positions`."""
        if TIES in call.node.attrs:
            return call.node.attrs[TIES]
        n = int(call.node.literal("num_group", 1))
        inputs, outputs = call.shapes[0][1], call.out_shapes[0][1]
        if n == 1:
            return "none"
        if n == inputs and outputs % inputs == 0:
            return "depthwise"
        return "groups" if n > inputs // n else "positions"

    def channels(self, call: "Call") -> None:
        if not str(call.node.literal("layout", "NC")).startswith(("NC", "None")):
            return call.fix()
        x, ties, n = call.along(0, 1), self.ties(call), int(call.node.literal("num_group", 1))
        if ties == "depthwise":
            call.put(0, 1, np.repeat(x, call.out_shapes[0][1] // len(x)))
        else:
            call.reads(x)
            y = call.makes(0, 1)
            rows, made = x.reshape(n, -1), y.reshape(n, -1)
            if ties == "groups":
                for part in (rows, made):
                    call.unite(part, np.broadcast_to(rows[:, :1], part.shape))
            elif ties == "positions":
                for part in (rows, made):
                    call.unite(part[1:], np.broadcast_to(part[:1], part[1:].shape))
        self.weights(call, x.reshape(n, -1), call.outs[0].labels.reshape(n, -1))
        if call.bias is not None:
            call.array(call.bias, 0, call.outs[0].labels)

    def weights(self, call: "Call", rows: np.ndarray, made: np.ndarray) -> None:
        """Label the weight, given the labels of inputs and outputs, one row for each group."""
        ties = self.ties(call)
        call.array(self.weight, 0, made.reshape(-1))
        call.array(self.weight, 1, rows[0] if ties in ("none", "positions") else None)

    def attributes(self, call: "Call", count: Count) -> Dict[str, str]:
        """The numbers of outputs and groups; and how channels are tied, where these numbers would imply otherwise."""
        ties, n = self.ties(call), int(call.node.literal("num_group", 1))
        changed = super().attributes(call, count)
        if ties == "none":
            return changed
        inputs = call.ins[0].labels if call.ins[0] is not None else np.full(call.shapes[0][1], -1)  # fixed
        if ties != "positions":
            each = len(inputs) // n
            n = count(inputs) // each
            changed["num_group"] = str(n)
        if ties == "groups" and not 1 < each < n or ties == "depthwise" and n == 1 or ties == "positions":
            changed[TIES] = ties
        return changed

    def demand(self, call: "Call", wanted: int) -> List[int]:
        if self.ties(call) != "depthwise":
            return super().demand(call, wanted)
        return [max(wanted, EVEN) if wanted else ANY] + [ANY] * (len(call.ins) - 1)

    def taps(self, call: "Call", weight: np.ndarray) -> np.ndarray:
        """As `Layer.taps`, with the convolution's groups."""
        n = int(call.node.literal("num_group", 1))
        return weight.reshape(n, len(weight) // n, weight.shape[1], -1)

    def positions(self, call: "Call") -> int:
        return math.prod(call.out_shapes[0][2:])


@register("Deconvolution")
class Deconvolution(Convolution):
    """Transposed convolution, plain, grouped or depthwise; its weight has the shape (inputs, outputs per group, ...).

    With a stride, a constant meets different taps at different positions, so that the output is not constant.
    """

    out_axis = 1

    def weights(self, call: "Call", rows: np.ndarray, made: np.ndarray) -> None:
        ties = self.ties(call)
        call.array(self.weight, 0, rows.reshape(-1))
        call.array(self.weight, 1, made[0] if ties in ("none", "positions") else None)

    def demand(self, call: "Call", wanted: int) -> List[int]:
        needed, *rest = super().demand(call, wanted)
        return [ZERO if self.strided(call) and needed else needed, *rest]

    def strided(self, call: "Call") -> bool:
        return max(call.node.literal("stride", (1,)) or (1,)) > 1

    def additive(self, call: "Call") -> bool:
        return super().additive(call) and not self.strided(call)

    def taps(self, call: "Call", weight: np.ndarray) -> np.ndarray:
        n = int(call.node.literal("num_group", 1))
        return weight.reshape(n, len(weight) // n, weight.shape[1], -1).swapaxes(1, 2)

    def met(self, call: "Call") -> float:
        return 1 / math.prod(call.node.literal("stride", (1,)) or (1,))

    def by_output(self, call: "Call", values: np.ndarray) -> np.ndarray:
        n, shape = int(call.node.literal("num_group", 1)), call.shapes[self.weight]
        values = np.repeat(values.reshape(n, -1), shape[0] // n, axis=0)
        return values.reshape(*values.shape, *(1,) * (len(shape) - 2))

    def positions(self, call: "Call") -> int:
        return math.prod(call.shapes[0][2:])


@register("FullyConnected")
class FullyConnected(Layer):
    """A dense layer, applied to the flattened input or along its last axis."""

    size = "num_hidden"

    def axis(self, call: "Call") -> Optional[int]:
        return None if call.node.literal("flatten", True) else len(call.shapes[0]) - 1

    def channels(self, call: "Call") -> None:
        rank, last = len(call.shapes[0]), len(call.out_shapes[0]) - 1
        if call.node.literal("flatten", True):
            x = call.ins[0]
            x = np.zeros(1, np.int64) if x is None else x.spread(rank)
            x = np.broadcast_to(x.reshape((1,) * (rank - x.ndim) + x.shape), call.shapes[0]).reshape(
                call.shapes[0][0], -1
            )[0]
        else:
            x = call.along(0, self.axis(call))
        call.reads(x)
        y = call.makes(0, last)
        call.array(self.weight, 0, y)
        call.array(self.weight, 1, x)
        if call.bias is not None:
            call.array(call.bias, 0, y)

    def read(self, call: "Call", x: np.ndarray) -> np.ndarray:
        """As `Layer.read`, but with one value for each position of each channel if the input is flattened."""
        shape = call.shapes[0]
        if call.node.literal("flatten", True):
            return np.broadcast_to(x, shape).reshape(shape[0], -1)[0]
        return np.broadcast_to(x.mean(axis=tuple(range(x.ndim - 1))), shape[-1:])

    def positions(self, call: "Call") -> int:
        return math.prod(call.out_shapes[0][1:-1])


@register("_contrib_DeformableConvolution")
class Deformable(Layer):
    """Reads channels at image-dependent positions, so that constants do not stay constant: its inputs are fixed."""

    weight = 2

    def channels(self, call: "Call") -> None:
        call.fix(inputs=True)
        y = call.makes(0, 1)
        for k in range(len(call.ins)):
            if call.is_array(k):
                call.array(k, 0, y)

    def additive(self, call: "Call") -> bool:
        return False

    def positions(self, call: "Call") -> int:
        return math.prod(call.out_shapes[0][2:])


@register("_contrib_ModulatedDeformableConvolution")
class ModulatedDeformable(Deformable):
    """A deformable convolution that also weights each position that it reads."""

    weight = 3


# ---- norms ----------------------------------------------------------------------------------------------------------


@register("BatchNorm", "_contrib_SyncBatchNorm", "BatchNorm_v1")
class BatchNorm(Operator):
    """Scale, shift, running mean and running variance of every channel."""

    is_norm = True
    in_place = True

    def channels(self, call: "Call") -> None:
        axis = call.node.literal("axis", 1) % len(call.shapes[0])
        x = call.put(0, axis, call.along(0, axis))
        for k in range(1, len(call.ins)):
            call.array(k, 0, x)

    def additive(self, call: "Call") -> bool:
        """For its running mean: only if the channels are along its own axis."""
        return call.ins[0] is None or call.ins[0].axis == call.outs[0].axis

    def from_zero(self, call: "Call") -> int:
        return EVEN

    def moments(self, call: "Call", xs: Sequence[Gaussian]) -> List[Gaussian]:
        """N(shift, scale^2); for a constant input, the constant that it becomes."""
        x, out = xs[0], call.outs[0]
        scale, shift, mean, variance = (
            out.spread(len(call.out_shapes[0]), call.value(k).astype(np.float64)) for k in range(1, 5)
        )
        constant = scale * (x.mean - mean) / np.sqrt(variance + float(call.node.literal("eps", 1e-3))) + shift
        dead = (x.variance == 0) | (scale == 0)
        return [Gaussian(np.where(dead, np.where(scale == 0, shift, constant), shift), np.where(dead, 0.0, scale**2))]


# ---- pointwise functions --------------------------------------------------------------------------------------------


def _gaussian_relu(x: Gaussian) -> Gaussian:
    """Moments of a rectified Gaussian: the mean is `m Phi(m/s) + s phi(m/s)`, which is relu(m) where s is 0."""
    s = np.sqrt(x.variance)
    z = x.mean / np.where(s > 0, s, 1.0)
    cumulative, density = special.ndtr(z), np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    mean = np.where(s > 0, x.mean * cumulative + s * density, np.maximum(x.mean, 0.0))
    second = (x.mean**2 + x.variance) * cumulative + x.mean * s * density
    return Gaussian(mean, np.where(s > 0, np.maximum(second - mean**2, 0.0), 0.0))


class Pointwise(Operator):
    """A function that is applied to each value separately."""

    in_place = True

    def function(self, call: "Call") -> Callable[[np.ndarray], np.ndarray]:
        """The function, for arrays that broadcast with the tensor."""
        raise NotImplementedError

    def is_relu(self, call: "Call") -> bool:
        return False

    def from_zero(self, call: "Call") -> int:
        return EVEN if np.any(self.function(call)(np.zeros(1))) else ZERO

    def moments(self, call: "Call", xs: Sequence[Gaussian]) -> List[Gaussian]:
        """By Gauss-Hermite quadrature, or in closed form for relu."""
        if self.is_relu(call):
            return [_gaussian_relu(xs[0])]
        f, (mean, variance) = self.function(call), xs[0]
        if call.exact:
            return [Gaussian(f(mean), variance)]
        with np.errstate(all="ignore"):
            weights = (WEIGHTS / WEIGHTS.sum()).reshape((-1,) + (1,) * mean.ndim)
            values = np.stack([f(mean + np.sqrt(variance) * t) for t in NODES])
            expected = (weights * values).sum(0)
            spread = (weights * np.square(values - expected)).sum(0)
        return [Gaussian(np.where(variance > 0, expected, f(mean)), np.where(variance > 0, spread, 0.0))]


ACTIVATIONS: Dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda x: np.maximum(x, 0.0),
    "sigmoid": special.expit,
    "tanh": np.tanh,
    "softrelu": lambda x: np.logaddexp(x, 0.0),
    "softsign": lambda x: x / (1.0 + np.abs(x)),
}
FUNCTIONS: Dict[str, Callable[[np.ndarray], np.ndarray]] = {
    **ACTIVATIONS,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "square": np.square,
    "abs": np.abs,
    "negative": np.negative,
    "erf": special.erf,
}


@register("Activation", *FUNCTIONS)
class Activation(Pointwise):
    """Functions named by the operator itself or by its `act_type`."""

    def name(self, call: "Call") -> str:
        return call.node.attrs["act_type"] if call.node.op == "Activation" else call.node.op

    def channels(self, call: "Call") -> None:
        call.passes() if self.name(call) in FUNCTIONS else call.fix()

    def function(self, call: "Call") -> Callable[[np.ndarray], np.ndarray]:
        return FUNCTIONS.get(self.name(call), np.exp)

    def is_relu(self, call: "Call") -> bool:
        return self.name(call) == "relu"

    def homogeneous(self, call: "Call") -> bool:
        return self.name(call) in ("relu", "abs", "negative")


@register("LeakyReLU")
class LeakyReLU(Pointwise):
    """Leaky, parametric, exponential and Gaussian-error linear units."""

    def channels(self, call: "Call") -> None:
        call.passes()
        if self.slopes_per_channel(call):
            call.array(1, 0, call.ins[0].labels)

    def slopes_per_channel(self, call: "Call") -> bool:
        """Whether there is a slope for every channel: MXNet has them along axis 1, wherever the channels are."""
        return len(call.ins) > 1 and call.shapes[1] != (1,) and call.ins[0] is not None and call.ins[0].axis == 1

    def function(self, call: "Call") -> Callable[[np.ndarray], np.ndarray]:
        kind, slope = call.node.attrs.get("act_type", "leaky"), float(call.node.attrs.get("slope", 0.25))
        if kind == "elu":
            return lambda x: np.where(x > 0, x, slope * np.expm1(np.minimum(x, 0)))
        if kind == "selu":
            return lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0)))
        if kind == "gelu":
            return lambda x: x * special.ndtr(x)
        if kind == "prelu":
            slopes = Channels(1, call.value(1).astype(np.float64))
            slope = slopes.labels if call.shapes[1] == (1,) else slopes.spread(len(call.shapes[0]))
            return lambda x: np.where(x > 0, x, slope * x)
        if kind == "rrelu":  # drawn between two bounds in training; inference takes the middle
            literal = call.node.literal
            slope = (literal("lower_bound", 0.125) + literal("upper_bound", 0.334)) / 2
        return lambda x: np.where(x > 0, x, slope * x)

    def homogeneous(self, call: "Call") -> bool:
        return call.node.attrs.get("act_type", "leaky") in ("leaky", "prelu")

    def from_zero(self, call: "Call") -> int:
        return ZERO


@register("clip", "hard_sigmoid")
class Clip(Pointwise):
    """Linear functions clipped to two bounds."""

    def function(self, call: "Call") -> Callable[[np.ndarray], np.ndarray]:
        if call.node.op == "hard_sigmoid":
            alpha, beta = float(call.node.attrs.get("alpha", 0.2)), float(call.node.attrs.get("beta", 0.5))
            return lambda x: np.clip(alpha * x + beta, 0.0, 1.0)
        low, high = self.bounds(call)
        return lambda x: np.clip(x, low, high)

    def bounds(self, call: "Call") -> Tuple[float, float]:
        return float(call.node.attrs["a_min"]), float(call.node.attrs["a_max"])

    def homogeneous(self, call: "Call") -> bool:
        """Only if each bound is at zero or out of reach."""
        if call.node.op == "hard_sigmoid":
            return False
        low, high = self.bounds(call)
        return (low == 0 or low <= -LARGEST) and (high == 0 or high >= LARGEST)


SCALARS: Dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "_plus_scalar": lambda x, s: x + s,
    "_minus_scalar": lambda x, s: x - s,
    "_rminus_scalar": lambda x, s: s - x,
    "_mul_scalar": lambda x, s: x * s,
    "_div_scalar": lambda x, s: x / s,
    "_maximum_scalar": lambda x, s: np.maximum(x, s),
    "_minimum_scalar": lambda x, s: np.minimum(x, s),
    "_power_scalar": lambda x, s: x**s,
}


@register(*SCALARS)
class Scalar(Pointwise):
    """Arithmetic with a scalar."""

    def function(self, call: "Call") -> Callable[[np.ndarray], np.ndarray]:
        s = float(call.node.attrs["scalar"])
        return lambda x: SCALARS[call.node.op](x, s)

    def homogeneous(self, call: "Call") -> bool:
        op, s = call.node.op, float(call.node.attrs["scalar"])
        if op in ("_mul_scalar", "_div_scalar"):
            return True
        if op == "_power_scalar":
            return s == 1
        return s == 0 or op == "_maximum_scalar" and s <= -LARGEST or op == "_minimum_scalar" and s >= LARGEST

    def additive(self, call: "Call") -> bool:
        return call.node.op not in ("_maximum_scalar", "_minimum_scalar", "_power_scalar")

    def shift(self, call: "Call", ds: Sequence[np.ndarray]) -> List[np.ndarray]:
        f = self.function(call)
        return [f(ds[0]) - f(np.zeros(1))]


# ---- operators that pass channels one by one ------------------------------------------------------------------------


class Linear(Operator):
    """Passes values on: constants and factors are the same at the output as at the input."""

    def additive(self, call: "Call") -> bool:
        return True

    def homogeneous(self, call: "Call") -> bool:
        return True


@register("identity", "_copy", "Dropout", "BlockGrad", "make_loss")
class Identity(Linear):
    """Passes values on unchanged."""

    in_place = True


@register("Cast", "cast")
class Cast(Pointwise):
    """Conversion to another type of numbers; integers lose what is behind the point."""

    def is_float(self, call: "Call") -> bool:
        return "float" in call.node.attrs["dtype"]

    def function(self, call: "Call") -> Callable[[np.ndarray], np.ndarray]:
        if self.is_float(call):
            return lambda x: x
        return lambda x: np.asarray(x).astype(call.node.attrs["dtype"]).astype(np.float64)

    def additive(self, call: "Call") -> bool:
        return self.is_float(call)

    def homogeneous(self, call: "Call") -> bool:
        return self.is_float(call)


@register(
    "Pooling", "Pooling_v1", "_contrib_AdaptiveAvgPooling2D", "_contrib_BilinearResize2D", "UpSampling", "Pad", "pad",
    "_contrib_ROIAlign", "ROIPooling", "Crop",
)  # fmt: skip
class Resampling(Linear):
    """Changes the positions of each channel, not the channels. A constant is not preserved at zero-padded borders."""

    def channels(self, call: "Call") -> None:
        literal = call.node.literal
        extended = call.node.op.lower() == "pad" and any((literal("pad_width") or ())[:4])
        joined = call.node.op == "UpSampling" and len(call.ins) > 1  # with other tensors, or by a learnt kernel
        last = not str(literal("layout", "NC")).startswith(("NC", "None"))  # its channels are along another axis
        joined = joined or literal("position_sensitive", False)  # each position of a box has channels of its own
        if literal("pool_type", "avg") not in ("avg", "max") or extended or joined or last or len(call.ins) > 2:
            return call.fix()
        call.put(0, 1, call.along(0, 1))

    def demand(self, call: "Call", wanted: int) -> List[int]:
        """The same constant at all positions, unless they become one; and zeros where no other constant is kept."""
        least = ZERO if self.mixes(call) else CONSTANT if self.is_global(call) else EVEN
        return [max(wanted, least) if wanted else ANY] + [ANY] * (len(call.ins) - 1)

    def mixes(self, call: "Call") -> bool:
        """Whether zeros are mixed in: means count padded zeros, or a box may extend beyond the border."""
        literal = call.node.literal
        counted = literal("pool_type", "max") == "avg" and literal("count_include_pad", True)
        padded = counted and any(literal("pad", None) or ()) and not literal("global_pool", False)
        return padded or call.node.op in ("_contrib_ROIAlign", "ROIPooling")

    def is_global(self, call: "Call") -> bool:
        """Whether all positions become one, their mean or their maximum."""
        adaptive = call.node.op == "_contrib_AdaptiveAvgPooling2D" and math.prod(call.out_shapes[0][2:]) == 1
        return adaptive or bool(call.node.literal("global_pool", False))

    def additive(self, call: "Call") -> bool:
        return not self.mixes(call)

    def moments(self, call: "Call", xs: Sequence[Gaussian]) -> List[Gaussian]:
        """The mean or the maximum of all positions; otherwise differences between positions add to the variance."""
        x, axes = xs[0], tuple(range(2, xs[0].mean.ndim))
        mean, variance = (of.mean(axis=axes, keepdims=True) for of in x)
        # A pooling without a type takes the maximum; an adaptive one is always a mean.
        largest = call.node.op.startswith("Pooling") and call.node.literal("pool_type", "max") == "max"
        if self.is_global(call) and largest:
            mean = x.mean.max(axis=axes, keepdims=True)
        elif not self.is_global(call) and not call.exact:
            variance = variance + x.mean.var(axis=axes, keepdims=True)
        return [Gaussian(mean, variance)]


@register("ones_like", "zeros_like")
class Filled(Operator):
    """The same number everywhere."""

    def from_zero(self, call: "Call") -> int:
        return ZERO if call.node.op == "zeros_like" else EVEN

    def demand(self, call: "Call", wanted: int) -> List[int]:
        return [ANY]

    def moments(self, call: "Call", xs: Sequence[Gaussian]) -> List[Gaussian]:
        shape = (1,) * len(call.shapes[0])
        return [Gaussian(np.full(shape, float(call.node.op == "ones_like")), np.zeros(shape))]

    def additive(self, call: "Call") -> bool:
        return True

    def shift(self, call: "Call", ds: Sequence[np.ndarray]) -> List[np.ndarray]:
        return [np.zeros((1,) * len(call.shapes[0]))]


@register("softmax", "log_softmax", "softmin")
class Softmax(Operator):
    """Passes channels along any other axis than its own, and fixes channels along its own."""

    def channels(self, call: "Call") -> None:
        x = call.ins[0]
        if x is not None and x.axis == call.node.literal("axis", -1) % len(call.shapes[0]):
            return call.fix()
        call.passes()

    def from_zero(self, call: "Call") -> int:
        return EVEN

    def moments(self, call: "Call", xs: Sequence[Gaussian]) -> List[Gaussian]:
        """The softmax of the means; n equal values become 1 / n each."""
        axis = call.node.literal("axis", -1) % len(call.shapes[0])
        mean, variance = np.broadcast_arrays(*xs[0])
        alike = call.shapes[0][axis] if mean.shape[axis] == 1 else 1
        share = special.softmax(-mean if call.node.op == "softmin" else mean, axis=axis) / alike
        varies = variance.any(axis=axis, keepdims=True)
        if call.node.op == "log_softmax":
            return [Gaussian(np.log(share), np.where(varies, 1.0, 0.0) + 0 * share)]
        return [Gaussian(share, np.where(varies, share * (1 - share), 0.0))]


# ---- several tensors, element by element ----------------------------------------------------------------------------


class Elementwise(Operator):
    """Unites the channels of its inputs index by index. An input of length 1 along their axis is fixed."""

    in_place = True

    def channels(self, call: "Call") -> None:
        """As the class describes; an array that extends along the channel axis gets the channels' labels."""
        shape = call.out_shapes[0]
        inputs = [self.aligned(call, k) for k in range(len(call.ins))]
        whole = [x for s, x in inputs if x is not None and s[x.axis] == shape[x.axis]]
        if not whole:
            return call.fix()
        x = whole[0]
        for k, (s, other) in enumerate(inputs):
            at = x.axis - len(shape) + len(call.shapes[k])
            if other is not None and other.axis == x.axis and len(other.labels) == len(x.labels):
                call.unite(x.labels, other.labels)
            elif other is not None:
                call.walk.fix(other.labels)
                if s[x.axis] == shape[x.axis] and other.axis != x.axis:
                    call.walk.fix(x.labels)
            elif call.is_array(k) and at >= 0 and s[x.axis] == len(x.labels):
                call.array(k, at, x.labels)
            elif s[x.axis] != 1:
                call.walk.fix(x.labels)
        call.put(0, x.axis, x.labels)

    def aligned(self, call: "Call", k: int) -> Tuple[Tuple[int, ...], Optional[Channels]]:
        """Shape and channels of input k with the output's axes: those that it lacks are the first, of length 1."""
        lacks, x = len(call.out_shapes[0]) - len(call.shapes[k]), call.ins[k]
        return (1,) * lacks + call.shapes[k], None if x is None else Channels(x.axis + lacks, x.labels)

    def own(self, call: "Call", k: int) -> bool:
        """Whether input k has the output's channels, united with them; otherwise none of its values is removed."""
        x, out = self.aligned(call, k)[1], call.outs[0]
        return x is not None and out is not None and (x.axis, len(x.labels)) == (out.axis, len(out.labels))

    def from_zero(self, call: "Call") -> int:
        """A constant if an array is among the inputs, and nothing of the kind if another tensor's fixed values are."""
        return min(ZERO if self.own(call, k) else EVEN if call.is_array(k) else ANY for k in range(len(call.ins)))

    def demand(self, call: "Call", wanted: int) -> List[int]:
        return [wanted if self.own(call, k) else ANY for k in range(len(call.ins))]

    def homogeneous(self, call: "Call") -> bool:
        """Only if all inputs carry the factor; arrays and fixed values do not."""
        return all(self.own(call, k) for k in range(len(call.ins)))

    def combine(self, values: Sequence[np.ndarray]) -> np.ndarray:
        raise NotImplementedError

    def moments(self, call: "Call", xs: Sequence[Gaussian]) -> List[Gaussian]:
        """The function of the means; variances are added, so the output is constant where all inputs are."""
        variance = xs[0].variance
        for x in xs[1:]:
            variance = variance + x.variance
        return [Gaussian(self.combine([x.mean for x in xs]), variance)]


@register(
    "elemwise_add", "broadcast_add", "broadcast_plus", "_Plus", "_plus", "_add", "add_n", "ElementWiseSum"
)  # fmt: skip
class Addition(Elementwise):
    """Means and variances are added."""

    is_addition = True

    def combine(self, values: Sequence[np.ndarray]) -> np.ndarray:
        return sum(values[1:], values[0])

    def additive(self, call: "Call") -> bool:
        return True

    def shift(self, call: "Call", ds: Sequence[np.ndarray]) -> List[np.ndarray]:
        return [self.combine(ds)]

    def gather(self, call: "Call", xs: Sequence[np.ndarray]) -> List[np.ndarray]:
        own = [x for x, channels in zip(xs, call.ins) if channels is not None]
        return [sum(own[1:], own[0])]


@register("elemwise_sub", "broadcast_sub", "broadcast_minus", "_sub", "_minus")
class Subtraction(Addition):
    """Means are subtracted, variances added."""

    is_addition = False

    def combine(self, values: Sequence[np.ndarray]) -> np.ndarray:
        return values[0] - values[1]


@register("broadcast_maximum", "_maximum", "broadcast_minimum", "_minimum")
class Extremum(Elementwise):
    """The larger or the smaller of two values."""

    def moments(self, call: "Call", xs: Sequence[Gaussian]) -> List[Gaussian]:
        larger = np.maximum if "max" in call.node.op else np.minimum
        return [Gaussian(larger(xs[0].mean, xs[1].mean), xs[0].variance + xs[1].variance)]


@register("elemwise_mul", "broadcast_mul", "_mul")
class Product(Elementwise):
    """By an array: a scale. By another tensor, such as a squeeze-excite gate: a dropped channel has to be 0 in one."""

    def scales(self, call: "Call") -> bool:
        """Whether one of the factors is an array."""
        return any(call.is_array(k) for k in range(2))

    def homogeneous(self, call: "Call") -> bool:
        return self.scales(call)

    def main(self, call: "Call") -> int:
        """Index of the factor that has to be zero: preferably one that can be zero, then the larger, then the first."""
        return max((0, 1), key=lambda k: (self.own(call, k), call.zeroable[k], math.prod(call.shapes[k]), -k))

    def from_zero(self, call: "Call") -> int:
        return ZERO

    def demand(self, call: "Call", wanted: int) -> List[int]:
        """Zero in the main factor, anything in the other."""
        if self.scales(call):
            return [ANY if call.is_array(k) else wanted for k in range(2)]
        main = self.main(call)
        return [(ZERO if wanted else ANY) if k == main else ANY for k in range(2)]

    def gather(self, call: "Call", xs: Sequence[np.ndarray]) -> List[np.ndarray]:
        return [xs[1 if call.ins[0] is None else 0 if call.ins[1] is None else self.main(call)]]

    def moments(self, call: "Call", xs: Sequence[Gaussian]) -> List[Gaussian]:
        (a, v), (b, w) = xs
        return [Gaussian(a * b, a * a * w + b * b * v + v * w)]

    def additive(self, call: "Call") -> bool:
        return self.scales(call)

    def shift(self, call: "Call", ds: Sequence[np.ndarray]) -> List[np.ndarray]:
        k = 0 if call.is_array(1) else 1
        return [ds[k] * call.value(1 - k)]


# ---- operators that move channels -----------------------------------------------------------------------------------


class Moving(Linear):
    """Moves channels without changing values: `move` is applied to labels and to values per channel alike."""

    def axis(self, call: "Call", axis: int) -> Optional[int]:
        """The outputs' axis that holds the input's labelled axis; None if no axis does, which fixes the channels."""
        return axis

    def move(self, call: "Call", x: np.ndarray) -> List[np.ndarray]:
        """What the operator makes of an array of the input's rank: one array of the outputs' rank per output."""
        raise NotImplementedError

    def channels(self, call: "Call") -> None:
        x = call.ins[0]
        axis = None if x is None else self.axis(call, x.axis)
        if axis is None:
            return call.fix()
        for o, labels in enumerate(self.move(call, x.spread(len(call.shapes[0])))):
            whole = (*labels.shape[:axis], call.out_shapes[o][axis], *labels.shape[axis + 1 :])
            call.put(o, axis, np.broadcast_to(labels, whole))  # a single channel may have become several

    def gather(self, call: "Call", xs: Sequence[np.ndarray]) -> List[np.ndarray]:
        return self.move(call, xs[0])

    def moments(self, call: "Call", xs: Sequence[Gaussian]) -> List[Gaussian]:
        return [Gaussian(*x) for x in zip(self.move(call, xs[0].mean), self.move(call, xs[0].variance))]

    def shift(self, call: "Call", ds: Sequence[np.ndarray]) -> List[np.ndarray]:
        return self.move(call, ds[0])


@register("transpose", "SwapAxis", "swapaxes")
class Transpose(Moving):
    """Reorders axes."""

    def order(self, call: "Call") -> Tuple[int, ...]:
        rank = len(call.shapes[0])
        if call.node.op == "transpose":
            return tuple(call.node.literal("axes", ()) or range(rank)[::-1])
        order = list(range(rank))
        a, b = (int(call.node.literal(key, 0)) for key in ("dim1", "dim2"))
        order[a], order[b] = order[b], order[a]
        return tuple(order)

    def axis(self, call: "Call", axis: int) -> Optional[int]:
        return self.order(call).index(axis)

    def move(self, call: "Call", x: np.ndarray) -> List[np.ndarray]:
        return [x.transpose(self.order(call))]


@register("Reshape", "reshape", "Flatten", "flatten", "expand_dims", "squeeze")
class Reshape(Moving):
    """Splits and joins axes: channel shuffle, pixel shuffle, split attention, flatten.

    Where channels are split over several axes, those that differ along the axis left open (-1; otherwise the longest)
    can be removed, and those that differ along the others are tied.
    """

    in_place = True

    def blocks(self, call: "Call") -> List[Tuple[List[int], List[int]]]:
        """Pairs of input axes and output axes that hold the same values, in order, by MXNet's rules for `shape`."""
        n, m = len(call.shapes[0]), len(call.out_shapes[0])
        if call.node.op.lower() == "flatten":
            return [([0], [0]), (list(range(1, n)), [1])]
        if call.node.op in ("expand_dims", "squeeze"):
            short, long = sorted((call.shapes[0], call.out_shapes[0]), key=len)
            at, axes = 0, []
            given = call.node.literal("axis", None)
            ones = [a % len(long) for a in np.atleast_1d(given)] if given is not None else [
                a for a, size in enumerate(long) if size == 1
            ]  # fmt: skip
            for a in range(len(long)):
                axes.append(([], [a]) if a in ones else ([at], [a]))
                at += a not in ones
            return axes if call.node.op == "expand_dims" else [(b, a) for a, b in axes]
        spec, found, s, o, k = call.node.literal("shape"), [], 0, 0, 0
        while k < len(spec):
            if spec[k] == 0:
                found.append(([s], [o]))
                s, o = s + 1, o + 1
            elif spec[k] == -2:
                found += [([a], [o + a - s]) for a in range(s, n)]
                s, o = n, o + n - s
            elif spec[k] == -3:
                found.append(([s, s + 1], [o]))
                s, o = s + 2, o + 1
            elif spec[k] == -4:
                found.append(([s], [o, o + 1]))
                s, o, k = s + 1, o + 2, k + 2
            else:  # -1 or a number; consecutive ones form one block
                if not found or not getattr(found[-1], "free", False):
                    found.append(_Free(([], [])))
                found[-1][0].extend([s] if s < n else [])
                found[-1][1].append(o)
                s, o = s + 1, o + 1
            k += 1
        if s < n and found:
            found[-1][0].extend(range(s, n))
        return found if o == m else [(list(range(n)), list(range(m)))]

    def items(self, call: "Call") -> Dict[int, int]:
        """Output axis -> position in `shape` of the number that gives its length, where there is one."""
        if call.node.op.lower() != "reshape":
            return {}
        spec, o, k, found = call.node.literal("shape"), 0, 0, {}
        while k < len(spec):
            if spec[k] == -2:
                return found
            if spec[k] == -4:
                found.update({o: k + 1, o + 1: k + 2})
                o, k = o + 2, k + 3
                continue
            if spec[k] not in (0, -3):
                found[o] = k
            o, k = o + 1, k + 1
        return found

    def axis(self, call: "Call", axis: int) -> Optional[int]:
        """Among the axes that the channels are split over, the one left open (-1), otherwise the longest."""
        if call.node.literal("reverse", False) or call.node.op.lower() == "reshape" and not call.node.literal("shape"):
            return None
        ins, outs = next((b for b in self.blocks(call) if axis in b[0]), ([], []))
        if len(outs) < 2:
            return outs[0] if outs else None
        shape, made = call.shapes[0], call.out_shapes[0]
        inner = math.prod(shape[a] for a in ins if a > axis)
        steps = {a: math.prod(made[b] for b in outs if b > a) for a in outs}
        over = [a for a in outs if steps[a] < inner * shape[axis] and steps[a] * made[a] > inner]
        items = self.items(call)
        spec = call.node.literal("shape") if items else ()
        opened = [a for a in outs if a in items and spec[items[a]] == -1]
        opened = [a for a in opened if a in over or inner <= steps[a] <= inner * shape[axis]]
        return (opened or sorted(over, key=lambda a: made[a]) or outs)[-1]

    def move(self, call: "Call", x: np.ndarray) -> List[np.ndarray]:
        """Reshape block by block; axes of a block along which nothing differs keep length 1."""
        shape, made, rough, fine = call.shapes[0], call.out_shapes[0], [], []
        for ins, outs in self.blocks(call):
            alike = all(x.shape[a] == 1 for a in ins)
            rough += [1 if alike else shape[a] for a in ins]
            fine += [1 if alike else made[a] for a in outs]
        return [np.broadcast_to(x, rough).reshape(fine)]

    def attributes(self, call: "Call", count: Count) -> Dict[str, str]:
        """A number in `shape` that counts channels becomes -1, or the new count where another one is -1 already."""
        items, out = self.items(call), call.outs[0]
        if out is None or out.axis not in items:
            return {}
        spec = list(call.node.literal("shape"))
        if spec[items[out.axis]] > 0:
            spec[items[out.axis]] = -1 if -1 not in spec else count(out.labels)
        return {"shape": str(tuple(spec))}


class _Free(tuple):
    """A block of axes whose lengths are given by numbers in `shape`."""

    free = True


@register("slice_axis", "slice", "SliceChannel", "split", "slice_like", "reverse", "flip", "repeat", "tile")
class Slice(Moving):
    """Takes some of the channels, or all of them along part of another axis."""

    def parts(self, call: "Call") -> List[Dict[int, np.ndarray]]:
        """For each output, axis of the input -> the indices taken along it."""
        node, shape = call.node, call.shapes[0]
        literal, rank = node.literal, len(shape)
        if node.op in ("SliceChannel", "split"):
            axis, n = literal("axis", 1) % rank, int(literal("num_outputs"))
            return [{axis: part} for part in np.split(np.arange(shape[axis]), n)]
        if node.op == "slice_axis":
            axis = literal("axis") % rank
            return [{axis: np.arange(shape[axis])[slice(literal("begin", 0), literal("end", None))]}]
        if node.op == "slice":
            begin, end = literal("begin"), literal("end")
            step = literal("step", None) or ()
            return [
                {
                    a: np.arange(shape[a])[slice(begin[a], end[a], step[a] if a < len(step) else None)]
                    for a in range(len(begin))
                }
            ]
        if node.op == "slice_like":
            axes = literal("axes", ()) or tuple(range(rank))
            axes = (axes,) if isinstance(axes, int) else axes
            return [{a % rank: np.arange(call.out_shapes[0][a % rank]) for a in axes}]
        if node.op in ("reverse", "flip"):
            axes = literal("axis")
            return [{a % rank: np.arange(shape[a % rank])[::-1] for a in np.atleast_1d(axes)}]
        if node.op == "repeat":
            axis = literal("axis", None)
            if axis is None:
                return []
            return [{axis % rank: np.repeat(np.arange(shape[axis % rank]), int(literal("repeats")))}]
        reps = literal("reps")
        reps = (reps,) if isinstance(reps, int) else reps
        if len(reps) > rank:
            return []
        return [{rank - len(reps) + k: np.tile(np.arange(shape[rank - len(reps) + k]), n) for k, n in enumerate(reps)}]

    def axis(self, call: "Call", axis: int) -> Optional[int]:
        parts = self.parts(call)
        if not parts or call.node.literal("squeeze_axis", False):
            return None
        if call.node.op in ("slice_like", "reverse", "flip", "tile", "repeat") and axis in parts[0]:
            same = np.array_equal(parts[0][axis], np.arange(call.shapes[0][axis]))
            return axis if same and call.node.op == "tile" else None
        if call.node.op == "slice" and (call.node.literal("step", None) or ()) and axis in parts[0]:
            return None
        return axis

    def channels(self, call: "Call") -> None:
        """As `Moving.channels`; `slice_like` reads its second input only along the axes that it slices."""
        x, like = call.ins[0], call.ins[1] if len(call.ins) > 1 else None
        if x is None and like is not None and like.axis not in self.parts(call)[0]:
            return
        super().channels(call)
        if x is not None and call.node.op in ("SliceChannel", "split") and call.outs[0] is not None:
            if x.axis in self.parts(call)[0]:
                for out in call.outs[1:]:
                    call.unite(call.outs[0].labels, out.labels)

    def demand(self, call: "Call", wanted: int) -> List[int]:
        return [wanted] + [ANY] * (len(call.ins) - 1)

    def move(self, call: "Call", x: np.ndarray) -> List[np.ndarray]:
        """Take the indices along the axes on which the values depend."""
        made = []
        for part in self.parts(call):
            y = x
            for axis, taken in part.items():
                if y.shape[axis] > 1:
                    y = np.take(y, taken, axis)
            made.append(y)
        return made

    def attributes(self, call: "Call", count: Count) -> Dict[str, str]:
        """`begin` and `end`, counted in the remaining channels."""
        x, parts = call.ins[0], self.parts(call)
        if call.outs[0] is None or call.node.op not in ("slice_axis", "slice") or x.axis not in parts[0]:
            return {}
        taken = parts[0][x.axis]
        begin = count(x.labels[: taken[0]])
        end = begin + count(x.labels[taken])
        if call.node.op == "slice_axis":
            return {"begin": str(begin), "end": str(end)}
        spans = {key: list(call.node.literal(key)) for key in ("begin", "end")}
        spans["begin"][x.axis], spans["end"][x.axis] = begin, end
        return {key: str(tuple(span)) for key, span in spans.items()}


@register("Concat", "concat")
class Concat(Moving):
    """Concatenates channels; along any other axis, unites the inputs' channels as an addition does."""

    def channels(self, call: "Call") -> None:
        axis = call.node.literal("dim", 1) % len(call.out_shapes[0])
        first = next((x for x in call.ins if x is not None), None)
        if first is None:
            return call.fix()
        if first.axis == axis:
            labels = [call.along(k, axis) for k in range(len(call.ins))]
            call.put(0, axis, np.concatenate(labels))
            return
        for k, x in enumerate(call.ins):
            if x is not None and x.axis == first.axis:
                call.unite(first.labels, x.labels)
            else:
                call.walk.fix(first.labels)
                call.along(k, first.axis)
        call.put(0, first.axis, first.labels)

    def joined(self, call: "Call", xs: Sequence[np.ndarray]) -> np.ndarray:
        """Values per channel of all inputs, concatenated."""
        axis = call.node.literal("dim", 1) % len(call.out_shapes[0])
        common = np.broadcast_shapes(*(x.shape[:axis] + (1,) + x.shape[axis + 1 :] for x in xs))
        return np.concatenate(
            [np.broadcast_to(x, common[:axis] + (s[axis],) + common[axis + 1 :]) for x, s in zip(xs, call.shapes)], axis
        )

    def gather(self, call: "Call", xs: Sequence[np.ndarray]) -> List[np.ndarray]:
        return [self.joined(call, xs)]

    def moments(self, call: "Call", xs: Sequence[Gaussian]) -> List[Gaussian]:
        return [Gaussian(self.joined(call, [x.mean for x in xs]), self.joined(call, [x.variance for x in xs]))]

    def shift(self, call: "Call", ds: Sequence[np.ndarray]) -> List[np.ndarray]:
        return [self.joined(call, ds)]


@register("sum", "mean", "max", "min")
class Reduction(Moving):
    """Passes channels if it reduces other axes, and fixes them if it reduces theirs."""

    def axes(self, call: "Call") -> Tuple[int, ...]:
        rank, given = len(call.shapes[0]), call.node.literal("axis", None)
        axes = {a % rank for a in np.atleast_1d(given)} if given not in (None, ()) else set(range(rank))
        return tuple(sorted(set(range(rank)) - axes if call.node.literal("exclude", False) else axes))

    def axis(self, call: "Call", axis: int) -> Optional[int]:
        axes = self.axes(call)
        if axis in axes:
            return None
        return axis if call.node.literal("keepdims", False) else axis - sum(a < axis for a in axes)

    def move(self, call: "Call", x: np.ndarray) -> List[np.ndarray]:
        """The sum, mean or extremum; labels do not differ along the reduced axes."""
        axes, keep = self.axes(call), bool(call.node.literal("keepdims", False))
        if np.issubdtype(x.dtype, np.integer):
            return [x.max(axis=axes, keepdims=keep)]
        if call.node.op == "sum":
            alike = math.prod(call.shapes[0][a] for a in axes if x.shape[a] == 1)
            return [alike * x.sum(axis=axes, keepdims=keep)]
        return [getattr(x, call.node.op)(axis=axes, keepdims=keep)]


@register("broadcast_like", "broadcast_axis", "broadcast_to")
class Broadcast(Linear):
    """Repeats along axes of length 1, and passes channels along the others."""

    def channels(self, call: "Call") -> None:
        x = call.ins[0]
        if x is None or call.shapes[0][x.axis] != call.out_shapes[0][x.axis]:
            return call.fix()
        call.put(0, x.axis, x.labels)


# ---- operators that do not pass channels ----------------------------------------------------------------------------


@register(
    "shape_array", "size_array", "_arange", "_contrib_arange_like", "_zeros", "_ones", "_full",
)  # fmt: skip
class Shapes(Operator):
    """Reads at most the shapes of its inputs, so that it fixes no channels."""

    def channels(self, call: "Call") -> None:
        pass

    def demand(self, call: "Call", wanted: int) -> List[int]:
        return [ANY] * len(call.ins)


@register(
    "_contrib_box_nms", "_contrib_box_decode", "_contrib_box_encode", "_contrib_MultiBoxPrior", "where", "gather_nd",
    "topk", "argsort", "argmax", "pick", "take", "stack", "batch_dot", "dot", "reshape_like", "L2Normalization",
    "LayerNorm", "GroupNorm", "InstanceNorm", "SoftmaxOutput", "broadcast_equal", "broadcast_mod", "broadcast_div",
    "elemwise_div", "_greater_scalar", "_lesser_scalar", "_equal_scalar", "_greater_equal_scalar", "log2", "floor",
    "ceil", "_contrib_quantize_v2", "_contrib_dequantize", "_contrib_quantized_pooling", "_sg_mkldnn_conv",
    "_sg_mkldnn_fully_connected", "_contrib_requantize", "_contrib_quantized_flatten", "_contrib_quantized_act",
    "_contrib_quantized_concat", "_linalg_gemm2", "LRN",
)  # fmt: skip
class Fixed(Operator):
    """Mixes channels, or depends on their positions: all channels that it reads are fixed."""

    def channels(self, call: "Call") -> None:
        call.fix()

    def demand(self, call: "Call", wanted: int) -> List[int]:
        return [ANY] * len(call.ins)

    def moments(self, call: "Call", xs: Sequence[Gaussian]) -> List[Gaussian]:
        return [Gaussian(np.zeros((1,) * len(s)), np.ones((1,) * len(s))) for s in call.out_shapes]


class Unknown(Fixed):
    """Stands for every operator without a class of its own."""

    known = False


UNKNOWN = Unknown()
