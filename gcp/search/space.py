"""The architectures that a search chooses among: widths, blocks, kernels and depth as decisions, and their costs.

"Curated" widths are the few that suit a device: multiples of its granularity. A decision is named by its kind and by
what it is about:

    multiplier                    one fraction of the original width, for all groups without a decision of their own
    width:GROUP                   the number of channels of a group
    block:DEPTHWISE               plain | fused | full: what replaces an inverted bottleneck (`graph.rewrites`)
    kernel:LAYER                  the size of a convolution's kernel
    drop:ADDITION                 whether a residual block is left out

An architecture is one level for each decision. Its cost is the network's own cost plus what each decision changes: the
parts of a cost that a rewrite removes or adds are found once, so that pricing builds no network.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache
from typing import (
    Any,
    Callable,
    ClassVar,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
)

import numpy as np
from pydantic import Field, field_validator

from gcp.cost.base import Cost, Term
from gcp.cost.layers import Channels, Layer, layers
from gcp.cost.sampling import Sampled
from gcp.errors import UserError
from gcp.graph import rewrites
from gcp.graph.channels import is_depthwise, layer_name
from gcp.graph.network import Network, Widths
from gcp.graph.surgery import resized
from gcp.options import Options, listed

MULTIPLIER = "multiplier"
BLOCKS = {"fused": rewrites.fuse_expand, "full": rewrites.depthwise_to_full}
MAX_TOGETHER = 4096  # combinations of decisions that change the same part of a cost: each needs a network
CHUNK = 4096  # random architectures that are drawn and priced at once
KEPT_NETWORKS = 256  # rewritten networks that are cached

Value = Any  # of a decision: channels, a multiplier, a kind of block, a kernel's size, or whether a block is left out
Levels = np.ndarray  # shape (architectures, decisions): indices of levels
Scope = Tuple[str, ...]


class SpaceOptions(Options):
    """What can be decided. Keys of mappings name layers or groups, with `*`, `?` and `[...]` as wildcards."""

    FILES: ClassVar[Set[str]] = {"start_from"}

    multipliers: Tuple[float, ...] = Field(
        (), description="fractions of the original width: one is chosen for all groups that widths does not name"
    )
    widths: Dict[str, Tuple[float, ...]] = Field(
        {}, description="by group, such as {'*': [0.25, 0.5, 1.0]}: fractions of its width, rounded to prune.round_to"
    )
    blocks: Dict[str, Tuple[str, ...]] = Field(
        {}, description="by depthwise layer, such as {'*': [plain, fused]}: some of plain, fused, full"
    )
    kernels: Dict[str, Tuple[int, ...]] = Field({}, description="by convolution: odd kernel sizes")
    drop: Tuple[str, ...] = Field((), description="residual blocks that can be left out, by their additions, as ['*']")
    start_from: Optional[str] = Field(
        None, min_length=1, description="a pattern file, with the values of decisions that are not searched"
    )
    freeze: Tuple[str, ...] = Field((), description="decisions that are not searched, such as ['width:*', 'block:*1*']")

    _lists = field_validator("multipliers", "drop", "freeze", mode="before")(listed)

    @field_validator("widths", "blocks", "kernels", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return {key: listed(of) for key, of in value.items()} if isinstance(value, dict) else value

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    def mistakes(self) -> Iterator[str]:
        """See `Options`."""
        parts = {"multipliers": self.multipliers, **{f"widths.{key}": of for key, of in self.widths.items()}}
        for key, of in parts.items():
            if any(not 0 < part <= 10 for part in of):
                yield f"{key}: {list(of)} should be fractions of a width, above 0 and at most 10"
        for key, of in self.blocks.items():
            if not of or any(kind != "plain" and kind not in BLOCKS for kind in of):
                yield f"blocks.{key}: {list(of)} should be one or more of plain, {', '.join(BLOCKS)}"
        for key, of in self.kernels.items():
            if not of or any(size % 2 == 0 or not 0 < size < 100 for size in of):
                yield f"kernels.{key}: {list(of)} should be odd sizes"


class Priced:
    """A cost as tables over decisions: the cost is their sum, or the largest of them."""

    def __init__(self, decisions: Mapping[str, Tuple[Value, ...]], tables: Mapping[Scope, np.ndarray], is_sum: bool):
        self.decisions, self.tables, self.is_sum = decisions, tables, is_sum
        self._at = {name: k for k, name in enumerate(decisions)}

    def __call__(self, levels: Levels) -> np.ndarray:
        """The cost of each architecture, shape (architectures,)."""
        total = np.zeros(len(levels))
        for scope, table in self.tables.items():
            values = table[tuple(levels[:, self._at[name]] for name in scope)] if scope else table
            total = total + values if self.is_sum else np.maximum(total, values)
        return total

    def cost(self) -> Cost:
        """The same cost for solvers, as a function of level indices."""

        def term(scope: Scope, table: np.ndarray) -> Term:
            return Term(scope, lambda *levels: float(table[levels]))

        return Cost([term(*each) for each in self.tables.items()], "sum" if self.is_sum else "max")


class _Part(NamedTuple):
    """A part of a cost as a table over decisions, hashable, so that parts that two networks share can be found."""

    place: str
    scope: Scope
    shape: Tuple[int, ...]
    values: bytes

    @property
    def table(self) -> np.ndarray:
        return np.frombuffer(self.values, np.float64).reshape(self.shape)


class Space:
    """The architectures that can be made from a network.

    `decisions`: by name, the possible values of what can be decided; `fixed`: the value of what cannot. UserError: a
    name matches nothing in the network, or a layer does not have a choice.
    """

    def __init__(
        self, net: Network, options: SpaceOptions, round_to: int = 1, start: Optional[Mapping[str, Value]] = None
    ) -> None:
        self.net, self.round_to = net, round_to
        self.own: Dict[str, Value] = self._own(options)
        declared = self._declared(options)
        known = {name: values for name, values in declared.items() if len(values) > 1}
        self.fixed: Dict[str, Value] = {}
        if start is not None:
            self.fixed = self.resolved(start)
        # A single value decides, too: also that a group keeps its width where a multiplier is chosen for the others.
        for name, values in declared.items():
            if len(values) == 1 and (values[0] != self.own[name] or MULTIPLIER in known):
                self.fixed[name] = values[0]
        for wanted in options.freeze:
            names = _matching(wanted, self.own, f"freeze: '{wanted}' matches no decision")
            self.fixed |= {name: self.fixed.get(name, self.own[name]) for name in names}
        frozen = {name for wanted in options.freeze for name in _matching(wanted, self.own, "")}
        self.decisions = {name: values for name, values in known.items() if name not in frozen}
        self.fixed = {name: value for name, value in self.fixed.items() if name not in self.decisions}
        self._structured = lru_cache(maxsize=KEPT_NETWORKS)(self._rewritten)

    # ---- what can be decided -----------------------------------------------------------------------------------------

    def _own(self, options: SpaceOptions) -> Dict[str, Value]:
        """Every decision that is possible for the network, with the network's own value."""
        net = self.net
        convolutions = [i for i, node in enumerate(net.nodes) if node.op == "Convolution"]
        found: Dict[str, Value] = {MULTIPLIER: 1.0}
        found |= {f"width:{group}": n for group, n in net.widths.items()}
        found |= {f"block:{layer_name(net.nodes[i].name)}": "plain" for i in convolutions if is_depthwise(net, i)}
        for i in convolutions:
            kernel = net.arrays[net.weight(net.nodes[i].name)].shape[2:]
            if len(set(kernel)) == 1 and kernel[0] % 2:
                found[f"kernel:{layer_name(net.nodes[i].name)}"] = kernel[0]
        found |= {f"drop:{name}": False for name in rewrites.droppable(net)}
        return found

    def _declared(self, options: SpaceOptions) -> Dict[str, Tuple[Value, ...]]:
        """The values that the options allow, by decision: a single one where rounding leaves no more, for example."""
        found: Dict[str, Tuple[Value, ...]] = {}
        if options.multipliers:
            found[MULTIPLIER] = tuple(sorted(set(options.multipliers)))
        for wanted, parts in options.widths.items():
            for name in self._named("width", wanted, "group"):
                found[name] = tuple(sorted({self.rounded(part, self.own[name]) for part in parts}))
        fusable = {f"block:{layer_name(name)}" for name in rewrites.expansions(self.net)}
        for wanted, kinds in options.blocks.items():
            names = self._named("block", wanted, "depthwise layer")
            can = {name: tuple(kind for kind in kinds if kind != "fused" or name in fusable) for name in names}
            missing = next((name for name in names if len(can[name]) < len(kinds)), None)
            if missing and (not _is_wild(wanted) or not any(len(of) > 1 for of in can.values())):
                wrong = f"blocks: '{missing[6:]}' is not a depthwise layer after a 1x1 expansion, so it cannot be fused"
                raise UserError(f"{wrong}; leave it out of blocks", "space.choice")
            found |= {name: tuple(dict.fromkeys(of)) for name, of in can.items() if of}
        for wanted, sizes in options.kernels.items():
            names = self._named("kernel", wanted, "convolution with an odd square kernel")
            found |= {name: self._sizes(name, sizes) for name in names}
        for wanted in options.drop:
            found |= {name: (False, True) for name in self._named("drop", wanted, "residual block that can be dropped")}
        return found

    def _sizes(self, name: str, sizes: Sequence[int]) -> Tuple[int, ...]:
        for size in sizes:
            rewrites.resize_kernel(self.net, self._node(name), size)  # raises an error if it is impossible
        return tuple(sorted(set(sizes)))

    def _named(self, kind: str, wanted: str, what: str) -> List[str]:
        of_kind = [name for name in self.own if name.startswith(kind + ":")]
        wrong = f"network '{self.net.name}': '{wanted}' matches no {what}"
        return [f"{kind}:{each}" for each in _matching(wanted, [name.partition(":")[2] for name in of_kind], wrong)]

    def _node(self, name: str) -> str:
        """The node that a decision is about."""
        layer = name.partition(":")[2]
        return layer if layer in self.net.index else layer + "_fwd"

    def rounded(self, part: float, n: int) -> int:
        """A fraction of n channels, rounded to the nearest multiple of `round_to`.

        It is at least one multiple, or n if that is less; a fraction of 1 is n itself.
        """
        if part == 1:
            return n
        return max(min(n, self.round_to), math.floor(part * n / self.round_to + 0.5) * self.round_to)

    def resolved(self, pattern: Mapping[str, Value]) -> Dict[str, Value]:
        """A pattern's values by full names, without wildcards; a float stands for a fraction of a width.

        Where several entries match a name, the last one counts. UserError: one matches nothing, or has an invalid
        value.
        """
        found: Dict[str, Value] = {}
        for wanted, value in pattern.items():
            wrong = f"network '{self.net.name}': pattern: '{wanted}' matches no decision"
            for name in _matching(wanted, self.own, wrong):
                found[name] = self._valid(name, value)
        return found

    def _valid(self, name: str, value: Value) -> Value:
        """A decision's value, with a fraction of a width converted to channels. UserError: it is invalid."""
        kind, own = name.partition(":")[0], self.own[name]
        should = {
            "width": "a number of channels, or a fraction such as 0.5",
            "block": f"plain or {' or '.join(BLOCKS)}",
            "kernel": "an odd size",
            "drop": "true or false",
            MULTIPLIER: "a fraction such as 0.5",
        }[kind]
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if kind == "width" and isinstance(value, float) and 0 < value <= 10:
            return self.rounded(value, own)
        if {
            "width": is_number and isinstance(value, int) and 0 < value < 2**24,
            "block": value == "plain" or value in BLOCKS,
            "kernel": is_number and isinstance(value, int) and value % 2 == 1 and 0 < value < 100,
            "drop": isinstance(value, bool),
            MULTIPLIER: is_number and 0 < value <= 10,
        }[kind]:
            return value
        raise UserError(f"pattern: {name}: {value!r} should be {should}", "pattern.value")

    # ---- architectures -----------------------------------------------------------------------------------------------

    @property
    def names(self) -> Tuple[str, ...]:
        """The names of the decisions, in the order of the columns of levels."""
        return tuple(self.decisions)

    @property
    def sizes(self) -> np.ndarray:
        """The number of levels of each decision, shape (decisions,)."""
        return np.array([len(values) for values in self.decisions.values()])

    @property
    def n_architectures(self) -> int:
        """The number of combinations of decisions."""
        return math.prod(map(len, self.decisions.values()))

    def random(self, n: int, rng: np.random.Generator) -> Levels:
        """n random architectures, with all levels of a decision equally likely."""
        return rng.integers(0, self.sizes, (n, len(self.sizes)))

    def canonical(self, levels: Levels) -> Levels:
        """The same architectures, with decisions about dropped blocks at their first level.

        So no architecture has two representations.
        """
        found = np.array(levels)
        for k, inside in self._inside.items():
            found[np.ix_(np.flatnonzero(self._is_gone(found, k)), inside)] = 0
        return found

    @cached_property
    def _inside(self) -> Dict[str, np.ndarray]:
        """For each block that can be, or is, dropped: the indices of the decisions that are only about this block."""
        found = {}
        for name in self.own:
            if name.startswith("drop:") and (name in self.decisions or self.fixed.get(name)):
                left = self.rewritten({name: True})
                groups = set(self.group_of(left).values())
                gone = [
                    number
                    for number, (kind, _, what) in enumerate(each.partition(":") for each in self.decisions)
                    if (kind == "width" and what not in groups)
                    or (kind in ("block", "kernel") and self._node(f"{kind}:{what}") not in left.index)
                ]
                if gone:
                    found[name] = np.array(gone)
        return found

    def _is_gone(self, levels: Levels, name: str) -> np.ndarray:
        """Whether each architecture has dropped a block, shape (architectures,)."""
        if name not in self.decisions:
            return np.ones(len(levels), bool)
        values = np.array(self.decisions[name])
        return values[levels[:, self.names.index(name)]]

    def random_at(
        self, cost: Priced, low: float, high: float, n: int, rng: np.random.Generator, most: int = 10**6
    ) -> Levels:
        """The first n random architectures whose cost is in [low, high].

        UserError, with the range of costs that occur: there are fewer among `most` random architectures.
        """
        found, lowest, highest = np.empty((0, len(self.sizes)), np.int64), np.inf, -np.inf
        for _ in range(-(-most // CHUNK)):
            drawn = self.random(CHUNK, rng)
            costs = cost(drawn)
            lowest, highest = min(lowest, costs.min()), max(highest, costs.max())
            found = np.concatenate([found, drawn[(costs >= low) & (costs <= high)]])
            if len(found) >= n:
                return found[:n]
        raise UserError(
            f"{len(found)} of {most:,} random architectures cost {low:.6g} to {high:.6g}, but {n} are needed; "
            f"the costs of all range from {lowest:.6g} to {highest:.6g}",
            "space.cost",
        )

    def pattern(self, levels: Sequence[int]) -> Dict[str, Value]:
        """The values of all decisions of one architecture, including the fixed ones."""
        return {**self.fixed, **{name: of[k] for k, (name, of) in zip(levels, self.decisions.items())}}

    def levels(self, pattern: Mapping[str, Value]) -> np.ndarray:
        """The levels nearest to a pattern's values, or to the network's own values where the pattern has none."""
        known = {**self.own, **self.resolved(pattern)}

        def nearest(values: Tuple[Value, ...], value: Value) -> int:
            if value in values:
                return values.index(value)
            if isinstance(value, (bool, str)):
                return 0
            return int(np.argmin([abs(each - value) for each in values]))

        return np.array([nearest(values, known[name]) for name, values in self.decisions.items()])

    def widths(self, pattern: Mapping[str, Value]) -> Widths:
        """The width of every group of the network itself, in channels, as a pattern decides it."""
        of_all = pattern.get(MULTIPLIER, 1.0)
        return {g: pattern.get(f"width:{g}", self.rounded(of_all, n)) for g, n in self.net.widths.items()}

    def rewritten(self, pattern: Mapping[str, Value]) -> Network:
        """The network with a pattern's blocks, kernels and depth, at its own widths; weights are kept if possible."""
        return self._structured(self.structure(pattern))

    def structure(self, pattern: Mapping[str, Value]) -> Tuple[Tuple[str, Value], ...]:
        """A pattern's blocks, kernels and depth that differ from the network's, except inside dropped blocks."""
        apart = [(name, value) for name, value in sorted(pattern.items()) if value != self.own[name]]
        dropped = tuple(each for each in apart if each[0].startswith("drop:"))
        left = self._structured(dropped).index  # decisions about dropped blocks do not matter
        others = (each for each in apart if each[0].startswith(("block:", "kernel:")) and self._node(each[0]) in left)
        return (*dropped, *others)

    def _rewritten(self, structure: Tuple[Tuple[str, Value], ...]) -> Network:
        net = self.net
        for name, value in sorted(structure, key=lambda each: _ORDER.index(each[0].partition(":")[0])):
            kind, node = name.partition(":")[0], self._node(name)
            if kind == "drop":
                net = rewrites.drop_block(net, node)
            elif kind == "kernel":
                net = rewrites.resize_kernel(net, node, value)
            else:
                net = BLOCKS[value](net, node)
        return net

    def group_of(self, net: Network) -> Dict[str, str]:
        """For each group of a rewritten network, the original group whose decision determines its width."""
        owner = {layer: group.name for group in self.net.groups for layer in (*group.producers, *group.depthwise)}
        return {group.name: owner[group.producers[0]] for group in net.groups}

    def network(self, pattern: Mapping[str, Value]) -> Network:
        """The architecture of a pattern, with placeholder weights."""
        return self.at_widths(pattern, self.widths(pattern))

    def at_widths(self, pattern: Mapping[str, Value], widths: Widths) -> Network:
        """A pattern's blocks, kernels and depth at any widths of the network's own groups, with placeholder weights."""
        net = self.rewritten(pattern)
        return resized(net, {group: widths[own] for group, own in self.group_of(net).items()})

    # ---- costs -------------------------------------------------------------------------------------------------------

    @cached_property
    def _axes(self) -> Dict[str, Tuple[Optional[str], Tuple[int, ...]]]:
        """For each group, the decision that determines its width (None: it is fixed), and its width at each level."""
        found = {}
        for group, n in self.net.widths.items():
            own = f"width:{group}"
            if own in self.decisions:
                found[group] = own, self.decisions[own]
            elif own in self.fixed or MULTIPLIER not in self.decisions:
                found[group] = None, (self.widths(self.fixed)[group],)
            else:
                found[group] = MULTIPLIER, tuple(self.rounded(part, n) for part in self.decisions[MULTIPLIER])
        return found

    def _parts(self, net: Network, cost: Cost) -> Counter:
        """The parts of a rewritten network's cost, and how often each occurs."""
        own, found = self.group_of(net), Counter()
        for term in cost.parts:
            axes = [self._axes[own[group]] for group in term.names]
            scope = tuple(sorted({name for name, _ in axes if name is not None}))
            shape = tuple(len(self.decisions[name]) for name in scope)
            table = np.empty(shape)
            for at in np.ndindex(*shape):
                level = dict(zip(scope, at))
                table[at] = term.value(*[widths[level.get(name, 0)] for name, widths in axes])
            found[_Part(term.place, scope, shape, table.tobytes())] += 1
        return found

    def price(self, cost_of: Callable[[Network], Cost]) -> Priced:
        """A cost of all architectures, as tables. UserError: too many decisions change the same part of the cost."""
        fixed = {name: value for name, value in self.fixed.items() if name.partition(":")[0] in _ORDER}
        sites = {n: of for n, of in self.decisions.items() if n.partition(":")[0] in _ORDER}
        usual = {n: self.own[n] if self.own[n] in of else of[0] for n, of in sites.items()}

        @lru_cache(maxsize=None)
        def parts(net: Network) -> Counter:
            return self._parts(net, cost_of(net))

        def at(choice: Mapping[str, Value]) -> Counter:
            return parts(self.rewritten({**fixed, **usual, **choice}))

        base = at({})
        cost = cost_of(self.rewritten({**fixed, **usual}))
        gone: Dict[_Part, set] = {}  # the parts of the base that are changed, and by which decisions
        for name, values in sites.items():
            for value in values:
                if value != usual[name]:
                    for part in base - at({name: value}):
                        gone.setdefault(part, set()).add(name)
        total: Dict[Scope, np.ndarray] = {}

        def add(scope: Scope, table: np.ndarray) -> None:
            if scope in total:
                total[scope] = total[scope] + table if cost.is_sum else np.maximum(total[scope], table)
            else:
                total[scope] = np.array(table)

        clusters = _joined(sites, gone.values())
        for part, n in base.items():
            if part not in gone:
                add(part.scope, part.table * (n if cost.is_sum else 1))
        for cluster in clusters:
            if math.prod(len(sites[name]) for name in cluster) > MAX_TOGETHER:
                names = ", ".join(sorted(cluster)[:3])
                wrong = f"{len(cluster)} decisions ({names}, ...) affect the same part of a cost"
                raise UserError(f"{wrong}; let the search decide fewer of them", "space.together")
            others = Counter({part: n for part, n in base.items() if not gone.get(part, set()) & set(cluster)})
            counts: Dict[_Part, np.ndarray] = {}  # how often each choice of the cluster has each part of its own
            shape = tuple(len(sites[name]) for name in cluster)
            for index in np.ndindex(*shape):
                now = at({name: sites[name][k] for name, k in zip(cluster, index)})
                for part, n in (now - others).items():
                    counts.setdefault(part, np.zeros(shape))[index] = n
            for part, n in counts.items():
                whole = (*cluster, *part.scope)
                scope = tuple(sorted(whole))
                table = np.multiply.outer(n if cost.is_sum else np.minimum(n, 1), part.table)
                add(scope, np.transpose(table, [whole.index(name) for name in scope]))
        return Priced(self.decisions, total, cost.is_sum)


class SampledSpace(Sampled):
    """Networks of a space for fitting a latency model: random blocks, kernels and depth, at any widths."""

    def __init__(self, space: Space) -> None:
        super().__init__(space.net)
        self._space = space
        self._layers = lru_cache(maxsize=KEPT_NETWORKS)(self._own_layers)

    def draw(self, rng: np.random.Generator) -> Dict[str, Any]:
        """Random decisions, all values equally likely; only those that differ from the network are returned."""
        pattern = self._space.pattern(self._space.random(1, rng)[0])
        return {k: v for k, v in pattern.items() if k.partition(":")[0] in _ORDER and v != self._space.own[k]}

    def network(self, widths: Widths, decisions: Mapping[str, Any]) -> Network:
        """See `Sampled`."""
        return self._space.at_widths(self._space.resolved(decisions), widths)

    def layers(self, decisions: Mapping[str, Any]) -> Tuple[Layer, ...]:
        """See `Sampled`. UserError: the decisions, which can be from a file, are not of this network."""
        return self._layers(tuple(sorted(self._space.resolved(decisions).items())))

    def _own_layers(self, decisions: Tuple[Tuple[str, Any], ...]) -> Tuple[Layer, ...]:
        net = self._space.rewritten(dict(decisions))
        own = self._space.group_of(net)

        def renamed(side: Channels) -> Channels:
            total: Dict[str, int] = {}
            for group, n in side.per_unit.items():
                total[own[group]] = total.get(own[group], 0) + n
            return Channels(side.fixed, total)

        return tuple(replace(each, inputs=renamed(each.inputs), outputs=renamed(each.outputs)) for each in layers(net))


_ORDER = ("drop", "kernel", "block")  # in which the decisions of a structure are applied


def _is_wild(wanted: str) -> bool:
    return any(c in wanted for c in "*?[")


def _matching(wanted: str, names: Iterable[str], wrong: str) -> List[str]:
    """The names that a name with wildcards matches, or the exact name alone. UserError: there are none."""
    names = list(names)
    found = [name for name in names if name == wanted] or [name for name in names if fnmatchcase(name, wanted)]
    if not found:
        near = difflib.get_close_matches(wanted, names, n=1) or names[:1]
        hint = f"there are {len(names)}, such as '{near[0]}'" if near else "the network has none"
        raise UserError(f"{wrong}; {hint}", "space.name")
    return found


def _joined(sites: Iterable[str], together: Iterable[set]) -> List[Tuple[str, ...]]:
    """The sites in clusters, such that sites of the same set are in the same cluster."""
    cluster = {name: {name} for name in sites}
    for names in together:
        whole = set().union(*(cluster[name] for name in names))
        for name in whole:
            cluster[name] = whole
    return [tuple(sorted(of)) for of in {id(of): of for of in cluster.values()}.values()]
