"""Which networks to time so that a latency model can be fitted, and the files that hold what was measured.

As Berman et al., "AOWS: Adaptive and optimal network width search with latency constraints" (CVPR 2020) do, whole
networks with random widths are timed, not layers alone. Here are the layers that a network's time is made of, the
draw of widths, the granularity of the device, and JSON-lines files; `gcp.timing` has the clock, `gcp.latency` the fit.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from gcp.cost.analytic import macs
from gcp.errors import UserError
from gcp.graph.network import Network, Node, Widths, has_weight, is_depthwise, layer_name, resized

SAMPLES = "gcp latency samples 1"
SETUP = {"runtime", "device", "dtype", "batch", "threads"}  # keys of a `timing.Setup`
WORTH = 1.5  # slowdown of a multiple of half the granularity that can still be worth its smaller width
DRIFT = 21  # lines
GRANULARITIES = (1, 2, 4, 8, 16, 32, 64)


# ---- layers: what the entries of the table are -----------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """A conv or dense layer with all that follows it up to the next one, which the table counts as its own.

    `kind` is equal for layers that take the same time at the same widths: operator, kernel, stride, sizes, followers.
    `reads` and `makes` are the groups of its input and output channels, None where their number (`n_read`, `n_made`)
    is fixed. `taps` and `sites`: multiply-accumulates are `taps * sites * width read * width made` (once the width
    for a depthwise conv); `read_sites` and `made_sites`: values per channel of input, and of output and followers.
    """

    name: str
    kind: str
    operator: str
    reads: Optional[str]
    makes: Optional[str]
    n_read: int
    n_made: int
    taps: int
    sites: int
    read_sites: int
    made_sites: int
    depthwise: bool

    @property
    def groups(self) -> Tuple[str, ...]:
        """The groups whose widths it depends on."""
        return tuple(dict.fromkeys(group for group in (self.reads, self.makes) if group is not None))

    def widths(self, widths: Mapping[str, int]) -> Tuple[int, int]:
        """(width read, width made); a depthwise conv has one width, which is both."""
        made = self.n_made if self.makes is None else widths[self.makes]
        if self.depthwise:
            return made, made
        return (self.n_read if self.reads is None else widths[self.reads]), made


def layers(net: Network) -> Tuple[Layer, ...]:
    """The layers of a network in the order of its graph."""
    base: Dict[int, Optional[int]] = {}  # per node, the layer that it belongs to
    followers: Dict[int, List[int]] = {}
    for i, node in enumerate(net.nodes):
        if node.op == "null":
            base[i] = None
        elif has_weight(node):
            base[i], followers[i] = i, []
        else:
            base[i] = base[node.inputs[0]]
            if base[i] is not None:
                followers[base[i]].append(i)
    return tuple(_layer(net, i, rest) for i, rest in followers.items())


def _layer(net: Network, i: int, followers: Sequence[int]) -> Layer:
    node, source = net.nodes[i], net.nodes[i].inputs[0]
    shape, weight, depthwise = net.shapes[i], net.shapes[node.inputs[1]], is_depthwise(net, i)
    channels = weight[0] if depthwise else net.shapes[source][0]
    reads = net.owner[source]
    n_read = channels if reads is None else net.widths[reads]  # a flatten may have come between
    taps = int(np.prod(weight[1:], dtype=np.int64)) // (1 if depthwise else n_read)
    kernel = "x".join(map(str, weight[2:])) if node.op == "Convolution" else ""
    operator = ("depthwise " if depthwise else "conv " if kernel else "dense") + kernel
    stride = node.literal("stride", (1, 1)) if kernel else ()
    read_sites = int(np.prod(net.shapes[source], dtype=np.int64)) // n_read
    sizes = [f"{'x'.join(map(str, net.shapes[source][1:]))}>{'x'.join(map(str, shape[1:]))}"] if kernel else []
    after = [_follower(net, j) for j in followers]
    strided = ["stride " + "x".join(map(str, stride))] if stride and max(stride) > 1 else []
    kind = " ".join(
        [
            operator,
            *strided,
            *sizes,
            *([] if net.bias(node.name) is None else ["bias"]),
            *(["+ " + ", ".join(after)] if after else []),
        ]
    )
    sites = int(np.prod(shape[1:], dtype=np.int64))
    made_sites = sites + sum(int(np.prod(net.shapes[j][1:], dtype=np.int64)) for j in followers)
    return Layer(
        layer_name(node.name),
        kind,
        operator,
        None if depthwise else reads,
        net.owner[i],
        n_read,
        shape[0],
        taps,
        sites,
        read_sites,
        made_sites,
        depthwise,
    )


def _follower(net: Network, j: int) -> str:
    node = net.nodes[j]
    detail = node.attrs.get("act_type") or node.attrs.get("pool_type") or ""
    if node.op == "Pooling":
        detail += " to " + "x".join(map(str, net.shapes[j][1:]))
    return f"{node.op} {detail}".strip()


# ---- grids and random widths -----------------------------------------------------------------------------------------


def choices(sizes: Widths, step: int) -> Dict[str, List[int]]:
    """Per group, the widths that networks are sampled at: multiples of `step` up to 150 % of its size, and its size."""
    return {
        group: sorted({size} | set(range(step, max(step, int(1.5 * size)) + 1, step))) for group, size in sizes.items()
    }


def draw(sizes: Widths, choices: Mapping[str, Sequence[int]], scale: float, rng: np.random.Generator) -> Widths:
    """Random widths among the choices, about `scale` times each group's size; groups vary independently."""
    wanted = {g: scale * n * math.exp(rng.normal(0, 0.5)) for g, n in sizes.items()}
    return {g: int(min(choices[g], key=lambda width: abs(width - wanted[g]))) for g in sizes}


def drawn(
    sizes: Widths,
    choices: Mapping[str, Sequence[int]],
    kinds: Sequence[Layer],
    seen: Dict[tuple, int],
    rng: np.random.Generator,
    n_candidates: int = 24,
) -> Widths:
    """Widths for the next sample: of some random ones, those whose table entries have been seen least.

    Scales are spread so that multiply-accumulates are spread evenly from 1 % to 150 %. `seen` counts entries; the
    caller adds to it with `count`.
    """
    scale = math.sqrt(rng.uniform(0.01, 1.5))
    candidates = [draw(sizes, choices, scale, rng) for _ in range(n_candidates)]
    return max(
        candidates, key=lambda widths: sum(1 / (1 + seen.get((kind.kind, *kind.widths(widths)), 0)) for kind in kinds)
    )


def count(kinds: Sequence[Layer], widths: Widths, seen: Dict[tuple, int]) -> None:
    """Add the table entries of a network to `seen`."""
    for layer in kinds:
        key = (layer.kind, *layer.widths(widths))
        seen[key] = seen.get(key, 0) + 1


def alone(net: Network, layer: Layer) -> Network:
    """A network of this layer and its followers only, for timing it by itself. An addition adds its value to itself."""
    i = next(j for j, n in enumerate(net.nodes) if layer_name(n.name) == layer.name and has_weight(n))
    source = net.nodes[i].inputs[0]
    nodes, shapes, arrays = [Node("null", "data", {})], [net.shapes[source]], {}
    moved = {source: 0}
    mine = {i}
    for j in range(i, len(net.nodes)):
        node = net.nodes[j]
        if j != i and (node.op == "null" or has_weight(node) or node.inputs[0] not in mine):
            continue
        mine.add(j)
        for k in node.inputs:
            if net.nodes[k].name in net.arrays and k not in moved:
                moved[k] = len(nodes)
                nodes.append(net.nodes[k])
                shapes.append(net.shapes[k])
                arrays[net.nodes[k].name] = net.arrays[net.nodes[k].name]
        inputs = tuple(moved.get(k, moved[node.inputs[0]]) for k in node.inputs)
        moved[j] = len(nodes)
        nodes.append(replace(node, inputs=inputs))
        shapes.append(net.shapes[j])
    # Followers that branch (a relu read by two) all run: the last node is the output, the others lead to it or are few.
    return Network(f"{net.name} {layer.name}", tuple(nodes), len(nodes) - 1, tuple(shapes), arrays)


# ---- the granularity of a device -------------------------------------------------------------------------------------


def granularity_probes(sizes: Widths) -> List[Tuple[int, Widths]]:
    """(g, widths) of the networks whose times tell the granularity: every group at an odd multiple of g.

    Two for each g, about 3/4 of the network's own widths: the multiples below and above.
    """
    probes = []
    for g in GRANULARITIES:
        odd = {group: (math.floor((0.75 * n / g - 1) / 2) * 2 + 1) * g for group, n in sizes.items()}
        probes.append((g, {group: max(g, width) for group, width in odd.items()}))
        probes.append((g, {group: max(g, width + 2 * g) for group, width in odd.items()}))
    return probes


def slowdowns(probes: Sequence[Tuple[int, float, float]]) -> Dict[int, float]:
    """Per g, how much slower networks of odd multiples of g are at equal MACs than the fastest of the coarser ones.

    `probes`: (g, MACs, seconds). Least squares for log(seconds) = a_g + b log(MACs) with one b; then exp of the
    differences of a_g, 1 at least.
    """
    known = sorted({g for g, _, _ in probes})
    rows = np.zeros((len(probes), len(known) + 1))
    for row, (g, cost, _) in zip(rows, probes):
        row[known.index(g)], row[-1] = 1.0, math.log(cost)
    a = np.linalg.lstsq(rows, np.log([s for _, _, s in probes]), rcond=None)[0][:-1]
    return {g: max(1.0, math.exp(a[i] - a[i:].min())) for i, g in enumerate(known)}


def granularity(slower: Mapping[int, float], tolerance: float = 0.12) -> int:
    """The smallest g from which on networks are within `tolerance` of the fastest multiples; see `slowdowns`."""
    fine = max(slower)
    for g in sorted(slower, reverse=True):
        if slower[g] > 1 + tolerance:
            break
        fine = g
    return fine


def step_of(slower: Mapping[int, float]) -> int:
    """The step of the widths to sample: half the granularity, unless that is so slow that nobody would want it."""
    whole = granularity(slower)
    return whole // 2 if whole > 1 and slower[whole // 2] < WORTH * slower[whole] else whole


def width_class(width: int) -> int:
    """The largest of `GRANULARITIES` that divides the width."""
    return max(g for g in GRANULARITIES if width % g == 0)


# ---- files of samples ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Samples:
    """A file of measured networks: its header and its lines, oldest first."""

    path: Path
    header: dict
    lines: List[dict]

    @property
    def widths(self) -> List[Widths]:
        """Group -> width, per line."""
        return [dict(zip(self.header["sizes"], line["widths"])) for line in self.lines]

    @property
    def seconds(self) -> np.ndarray:
        """Latencies, the drift of the machine's speed taken out by the reference network.

        Each is scaled by the reference's running median over `DRIFT` lines: a single reference has the clock's noise.
        """
        own = np.array([line["latency_s"] for line in self.lines])
        reference = np.array([line["reference_s"] for line in self.lines])
        near = [np.median(reference[max(0, i - DRIFT // 2) : i + DRIFT // 2 + 1]) for i in range(len(own))]
        return own * np.median(reference) / near if len(own) else own


def read_samples(path: Path, skip_bad: bool = False, warn: Callable[[str], None] = lambda text: None) -> Samples:
    """A file that `sample` wrote. UserError: no such file, no such header, or, unless `skip_bad`, a bad line."""
    try:
        header, *rest = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); give a file that `latency.py sample` wrote") from error
    try:
        head = json.loads(header)
        lacking = "" if head["format"] == SAMPLES else "it has another format"
        lacking = lacking or header_problem(head)
    except (ValueError, KeyError, TypeError) as error:
        lacking = f"{type(error).__name__}: {error}"
    if lacking:
        raise UserError(
            f"{path}: line 1 is no header of latency samples ({lacking}); give a file that `latency.py sample` wrote"
        )
    n, lines = len(head["sizes"]), []
    for number, text in enumerate(rest, 2):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
            if (
                len(line["widths"]) != n
                or not all(isinstance(w, int) and w > 0 for w in line["widths"])
                or not all(isinstance(line[k], float) and line[k] > 0 for k in ("latency_s", "reference_s"))
            ):
                raise ValueError
            lines.append(line)
        except (ValueError, KeyError, TypeError):
            problem = f"{path}: line {number} is no whole measurement"
            if not skip_bad:
                raise UserError(f"{problem}; repair or delete it, or leave such lines out with --skip-bad") from None
            warn(f"{problem}: left out")
    return Samples(Path(path), head, lines)


def header_problem(header: Mapping[str, object]) -> str:
    """What keeps a header from saying which latency a file is about and how widths divide, in words; "" if nothing."""
    for key, kind in (
        ("network", str),
        ("input", list),
        ("classes", int),
        ("sizes", dict),
        ("setup", dict),
        ("hardware", dict),
        ("granularity", int),
        ("step", int),
        ("slowdowns", dict),
    ):
        if not isinstance(header.get(key), kind):
            return f"'{key}' is missing or of the wrong type"
    if set(header["setup"]) != SETUP:
        return f"the keys of 'setup' are not {', '.join(sorted(SETUP))}"
    if not all(isinstance(n, int) and n > 0 for n in header["sizes"].values()):
        return "'sizes' holds something else than numbers of channels"
    if not isinstance(header["hardware"].get("cpu"), str):
        return "'hardware' does not name the processor"
    if not {str(header["granularity"]), str(header["step"])} <= set(header["slowdowns"]):
        return "'slowdowns' lacks the granularity or the step"
    return ""


def same_subject(a: dict, b: dict) -> Optional[str]:
    """What tells two headers apart, in words; None where they are about one network, setup and processor."""
    for key, name in (("network", "network"), ("input", "input"), ("classes", "classes"), ("sizes", "widths")):
        if a[key] != b[key]:
            return f"{name} {_shown(a[key])} and {name} {_shown(b[key])}"
    for key in a["setup"]:
        if a["setup"][key] != b["setup"].get(key):
            return f"{key} {a['setup'][key]} and {key} {b['setup'].get(key)}"
    cpus = a["hardware"]["cpu"], b["hardware"]["cpu"]
    return None if cpus[0] == cpus[1] else f"processor '{cpus[0]}' and processor '{cpus[1]}'"


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{k}: {v}' for k, v in list(value.items())[:3])}, ...}}"
    if isinstance(value, list):
        return "x".join(map(str, value))
    return f"'{value}'" if isinstance(value, str) else str(value)


# One network timed: widths -> keys of `timing.timed`; and the reference (the network at its own widths) with it.
Measure = Callable[[Network], Tuple[dict, float]]


def sample(
    net: Network,
    path: Path,
    setup: dict,
    hardware: dict,
    measure: Measure,
    n: int,
    seed: int = 0,
    held_out: Optional[Mapping[int, float]] = None,
    progress: Callable[[int, int], None] = lambda done, n: None,
) -> Samples:
    """Append networks of random widths to `path` until it holds `n`; returns them all.

    `measure(network)` gives a measurement and the reference network's latency at about that time. Widths are
    multiples of `step_of`, which can be half the granularity, so that the model learns what such widths cost; the
    granularity is measured first. For validation, `held_out` are the `slowdowns` that were found then. What is drawn
    depends on `seed` and on what the file holds, so a killed sampling goes on as if it had not been.
    UserError: the file is about something else.
    """
    sizes, path = net.widths, Path(path)
    header = {
        "format": SAMPLES,
        "network": net.name,
        "input": list(net.input_shape),
        "classes": net.n_classes,
        "sizes": sizes,
        "setup": setup,
        "hardware": hardware,
    }
    if path.exists():
        _drop_torn_line(path)
        held = read_samples(path)
        apart = same_subject(held.header, header)
        if apart:
            raise UserError(f"{path}: holds samples of something else ({apart}); give another file")
        header, lines = held.header, list(held.lines)
    else:
        slower = held_out
        if slower is None:
            header["probes"] = _probed(net, measure)
            slower = slowdowns(header["probes"])
        header.update(
            {
                "slowdowns": {str(g): s for g, s in slower.items()},
                "granularity": granularity(slower),
                "step": step_of(slower),
            }
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        _append(path, header)
        lines = []
    step = header["step"]
    allowed = choices(sizes, step)
    kinds, seen = layers(net), {}
    for line in lines:
        count(kinds, dict(zip(sizes, line["widths"])), seen)
    for number in range(len(lines), n):
        widths = drawn(sizes, allowed, kinds, seen, np.random.default_rng((seed, number)))
        count(kinds, widths, seen)
        began = time.monotonic()
        row, reference = measure(resized(net, widths))
        lines.append(
            {
                "widths": list(widths.values()),
                **row,
                "reference_s": reference,
                "took_s": round(time.monotonic() - began, 3),
            }
        )
        _append(path, lines[-1])
        progress(number + 1, n)
    return Samples(path, header, lines)


def layers_alone(
    net: Network,
    widths: Sequence[Widths],
    path: Path,
    measure: Measure,
    progress: Callable[[int, int], None] = lambda done, n: None,
) -> List[float]:
    """Per network, the sum of its layers' latencies over the reference's, each timed by itself.

    Every different (kind, width read, width made) is timed once and kept in `path`, JSON lines; a killed run goes on.
    """
    path, kinds = Path(path), layers(net)
    known: Dict[tuple, float] = {}
    if path.exists():
        _drop_torn_line(path)
        for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                line = json.loads(text)
                known[(line["kind"], line["read"], line["made"])] = line["latency_s"] / line["reference_s"]
            except (ValueError, KeyError, TypeError, ZeroDivisionError):
                raise UserError(
                    f"{path}: line {number} is no whole measurement of a layer; delete the line or give another file"
                ) from None
    wanted = {(layer.kind, *layer.widths(w)): (layer, w) for w in widths for layer in kinds}
    for number, (key, (layer, w)) in enumerate(wanted.items(), 1):
        if key not in known:
            row, reference = measure(alone(resized(net, w), layer))
            known[key] = row["latency_s"] / reference
            _append(path, {"kind": key[0], "read": key[1], "made": key[2], **row, "reference_s": reference})
        progress(number, len(wanted))
    return [sum(known[(layer.kind, *layer.widths(w))] for layer in kinds) for w in widths]


def _probed(net: Network, measure: Measure, rounds: int = 3) -> List[Tuple[int, float, float]]:
    """(g, MACs, seconds) of each granularity probe: medians of rounds, so that one busy moment decides nothing."""
    cost, probes = macs(net), granularity_probes(net.widths)
    seconds = [[measure(resized(net, widths))[0]["latency_s"] for _, widths in probes] for _ in range(rounds)]
    return [(g, cost(widths), float(s)) for (g, widths), s in zip(probes, np.median(seconds, axis=0))]


def _append(path: Path, line: dict) -> None:
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; what it holds already is kept") from error


def _drop_torn_line(path: Path) -> None:
    """Cut off what a kill left unfinished at the end: a line of ours ends with a line break."""
    with open(path, "r+b") as file:
        whole = file.read().rpartition(b"\n")
        if whole[2]:
            file.truncate(len(whole[0]) + len(whole[1]))
