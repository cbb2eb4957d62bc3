"""Which networks to time so that a latency model can be fitted, and the files that hold the measurements.

As in Berman et al., "AOWS: Adaptive and optimal network width search with latency constraints" (CVPR 2020), whole
networks with random widths are timed, not single layers. This module has the random widths, the granularity of a device
and the JSON-lines files; `gcp.backend.clock` measures, and `gcp.cost.latency` fits.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

# Optional, not `X | None`: pydantic evaluates the annotations, and Python 3.9 cannot evaluate that form.
from typing import Annotated, Any, Callable, Dict, Iterable, List, Literal, Mapping, Optional, Sequence, Tuple, Union

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from gcp.cost.analytic import macs
from gcp.cost.layers import Layer, alone, layers
from gcp.errors import UserError
from gcp.graph.network import Network, Widths
from gcp.graph.surgery import resized
from gcp.storage import drop_torn_line, locked, parse_json, read_text, writing

GRANULARITIES = (1, 2, 4, 8, 16, 32, 64)
ACCEPTED_SLOWDOWN = 1.5  # of multiples of half the granularity: below it, the smaller width can still be worth it
DRIFT_LINES = 21  # lines whose median reference latency gives the machine's speed at the middle one

# ---- schemas of the files --------------------------------------------------------------------------------------------

Count = Annotated[int, Field(ge=1, le=2**24)]
Positive = Annotated[float, Field(gt=0, lt=1e9)]
NotNegative = Annotated[float, Field(ge=0, lt=1e9)]


class Schema(BaseModel):
    """What a file must contain: these keys and no others, and no value that has to be converted."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Setup(Schema):
    """What a latency depends on besides network and hardware; `clock.Setup` is a setup that can be measured here."""

    runtime: str
    device: str
    dtype: str
    batch: Count
    threads: Count


class Hardware(Schema):
    """Where a latency was measured.

    Processors can share the name `cpu`; files from before `cpu_model` was recorded do not tell which of them it was.
    """

    cpu: str
    cpu_model: Optional[str] = None
    gpu: Optional[str] = None
    versions: Dict[str, Optional[str]]
    date: str
    git_commit: Optional[str] = None


class Subject(Schema):
    """The network, setup and hardware that the latencies in a file belong to."""

    network: str
    input: Tuple[Count, Count, Count]
    classes: Count
    sizes: Dict[str, Count]
    setup: Setup
    hardware: Hardware

    @classmethod
    def of(cls, net: Network, setup: dict, hardware: dict) -> Subject:
        """The subject of this network's latency, with this setup and hardware."""
        return cls(
            network=net.name,
            input=net.input_shape,
            classes=net.n_classes,
            sizes=net.widths,
            setup=Setup(**setup),
            hardware=Hardware(**hardware),
        )


class Divided(Subject):
    """A subject, and how widths divide on its device: see `granularity`, `step_of` and `slowdowns_of`."""

    granularity: Count
    step: Count
    slowdowns: Dict[int, Annotated[float, Field(ge=1, lt=1e6)]]

    @model_validator(mode="after")
    def _check(self) -> Divided:
        if set(self.slowdowns) != set(GRANULARITIES):
            raise ValueError(f"slowdowns must have the keys {', '.join(map(str, GRANULARITIES))}")
        if not {self.granularity, self.step} <= set(GRANULARITIES) or self.step > self.granularity:
            raise ValueError("the granularity and the step must be powers of two, the step at most the granularity")
        return self


class Header(Divided):
    """The first line of a file of samples. `in_turns`: the reference was timed with every network, not occasionally."""

    format: Literal["gcp latency samples 1"]
    probes: Optional[List[Tuple[int, float, float]]] = None
    in_turns: bool = False


class Measurement(Schema):
    """A latency as returned by `clock.timed`, and that of the reference network, timed alternately with it."""

    latency_s: Positive
    spread: NotNegative
    n: Count
    noisy: bool
    attempts: Count
    reference_s: Positive


class Sample(Measurement):
    """A network that was timed: its widths, in the order of the header's `sizes`, and how long timing it took.

    `decisions`: what else was drawn (see `Sampled.draw`), and so differs from the header's network.
    """

    widths: List[Count]
    decisions: Dict[str, Union[bool, int, str]] = {}
    took_s: Optional[NotNegative] = None


class LayerSample(Measurement):
    """A layer that was timed by itself."""

    kind: str
    read: Count
    made: Count


def difference(held: Subject, here: Subject, warn: Callable[[str], None] = lambda text: None) -> Optional[str]:
    """The first difference between two subjects, in words; None if their network, setup and processor are the same.

    If a file does not record which of the processors of the same name it is about, only the names are compared, and
    `warn` is called.
    """
    names = {"network": "network", "input": "input", "classes": "classes", "widths": "sizes"}
    facts = [(name, getattr(held, key), getattr(here, key)) for name, key in names.items()]
    facts += [(key, value, getattr(here.setup, key)) for key, value in held.setup]
    facts.append(("processor", held.hardware.cpu, here.hardware.cpu))
    for key, name in (("cpu_model", "processor"), ("gpu", "GPU")):
        before, now = getattr(held.hardware, key), getattr(here.hardware, key)
        if before is not None and now is not None:
            facts.append((name, before, now))
        elif key == "cpu_model" or here.setup.device != "cpu":
            warn(f"the {name} is not fully known: the latencies may be those of another '{held.hardware.cpu}' machine")
    return next((f"{name} {_shown(a)} and {name} {_shown(b)}" for name, a, b in facts if a != b), None)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{k}: {v}' for k, v in list(value.items())[:3])}, ...}}"
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return f"'{value}'" if isinstance(value, str) else str(value)


class Sampled:
    """Which networks are sampled: one network at other widths. A subclass in `gcp.search.space` also varies blocks."""

    def __init__(self, net: Network) -> None:
        self.net = net

    def draw(self, rng: np.random.Generator) -> Dict[str, Any]:
        """What is drawn in addition to widths."""
        return {}

    def network(self, widths: Widths, decisions: Mapping[str, Any]) -> Network:
        """The network with these widths and decisions, with made-up weights."""
        return resized(self.net, widths)

    def layers(self, decisions: Mapping[str, Any]) -> Tuple[Layer, ...]:
        """The layers of such a network, with their widths given by the groups of the original network."""
        return layers(self.net)


# ---- random widths ---------------------------------------------------------------------------------------------------


def choices(sizes: Widths, step: int) -> Dict[str, List[int]]:
    """Per group, the widths to sample: its size, and multiples of `step` up to 150 % of its size."""
    return {
        group: sorted({size} | set(range(step, max(step, int(1.5 * size)) + 1, step))) for group, size in sizes.items()
    }


def random_widths(
    sizes: Widths,
    allowed: Mapping[str, Sequence[int]],
    kinds: Sequence[Layer],
    seen: Mapping[tuple, int],
    rng: np.random.Generator,
    n_candidates: int = 24,
) -> Widths:
    """Widths for the next sample: among `n_candidates` random ones, those whose table entries were sampled least.

    Groups vary independently around a common scale; scales are drawn so that multiply-accumulates are spread evenly
    from 1 % to 150 %. `seen` counts the sampled entries; the caller updates it with `count_entries`.
    """
    scale = math.sqrt(rng.uniform(0.01, 1.5))

    def candidate() -> Widths:
        wanted = {g: scale * n * math.exp(rng.normal(0, 0.5)) for g, n in sizes.items()}
        return {g: int(min(allowed[g], key=lambda width: abs(width - wanted[g]))) for g in sizes}

    return max(
        [candidate() for _ in range(n_candidates)],
        key=lambda widths: sum(1 / (1 + seen.get((kind.kind, *kind.widths(widths)), 0)) for kind in kinds),
    )


def count_entries(kinds: Sequence[Layer], widths: Widths, seen: Dict[tuple, int]) -> None:
    """Add the table entries of a network to `seen`."""
    for layer in kinds:
        key = (layer.kind, *layer.widths(widths))
        seen[key] = seen.get(key, 0) + 1


# ---- the granularity of a device -------------------------------------------------------------------------------------


def granularity_probes(sizes: Widths) -> List[Tuple[int, Widths]]:
    """(g, widths) of the networks whose times reveal the granularity: every group at an odd multiple of g.

    There are two for each g, at the odd multiples below and above about 3/4 of the network's own widths.
    """
    return [
        (g, {group: max(g, (math.floor((0.75 * n / g - 1) / 2) * 2 + odd) * g) for group, n in sizes.items()})
        for g in GRANULARITIES
        for odd in (1, 3)
    ]


def slowdowns_of(probes: Sequence[Tuple[int, float, float]]) -> Dict[int, float]:
    """Per g, how much slower odd multiples of g are, at equal MACs, than the fastest of g and all coarser ones.

    `probes`: (g, MACs, seconds). Least squares for log(seconds) = a_g + b log(MACs) with a common b; the slowdowns are
    the exponentials of differences between the a_g, and at least 1.
    """
    known = sorted({g for g, _, _ in probes})
    of_g = np.array([[g == other for other in known] for g, _, _ in probes], float)
    rows = np.column_stack([of_g, [math.log(cost) for _, cost, _ in probes]])
    a = np.linalg.lstsq(rows, np.log([s for _, _, s in probes]), rcond=None)[0][:-1]
    return {g: max(1.0, math.exp(a[i] - a[i:].min())) for i, g in enumerate(known)}


def granularity(slowdowns: Mapping[int, float], tolerance: float = 0.12) -> int:
    """The smallest g from which on all slowdowns are within `tolerance` of 1; the largest g if there is none."""
    slow = [g for g in slowdowns if slowdowns[g] > 1 + tolerance]
    return min((g for g in slowdowns if g > max(slow, default=0)), default=max(slowdowns))


def step_of(slowdowns: Mapping[int, float]) -> int:
    """The step of the widths to sample: half the granularity, unless such widths are too slow to be of any use."""
    whole = granularity(slowdowns)
    return whole // 2 if whole > 1 and slowdowns[whole // 2] < ACCEPTED_SLOWDOWN * slowdowns[whole] else whole


# ---- files of samples ------------------------------------------------------------------------------------------------

FIX = "give a file that `latency.py sample` wrote"


@dataclass(frozen=True)
class Samples:
    """A file of measured networks: its header and its other lines, oldest first."""

    path: Path
    header: Header
    lines: List[Sample]

    @property
    def widths(self) -> List[Widths]:
        """For each line, group -> width."""
        return [dict(zip(self.header.sizes, line.widths)) for line in self.lines]

    @property
    def reference_s(self) -> float:
        """The median latency of the reference network, in seconds."""
        return float(np.median([line.reference_s for line in self.lines]))

    @property
    def seconds(self) -> np.ndarray:
        """Latencies in seconds, corrected by the reference network for the drift of the machine's speed.

        Each is scaled by the latency of the reference timed alternately with it. In files from before this was done,
        the reference can be a second old; these are scaled by its running median over `DRIFT_LINES` lines instead.
        """
        own = np.array([line.latency_s for line in self.lines])
        reference = np.array([line.reference_s for line in self.lines])
        if len(own) and self.header.in_turns:
            return own * np.median(reference) / reference
        half = DRIFT_LINES // 2
        near = [np.median(reference[max(0, i - half) : i + half + 1]) for i in range(len(own))]
        return own * np.median(reference) / near if len(own) else own


def read_samples(path: Path, skip_bad: bool = False, warn: Callable[[str], None] = lambda text: None) -> Samples:
    """Read a file that `sample` wrote. UserError: no such file, a bad header, or, unless `skip_bad`, a bad line."""
    first, *rest = read_text(path, FIX).split("\n")
    header = parse_json(first, Header, f"{path}: line 1: not a header of latency samples", FIX)

    def fits(line: Sample) -> Sample:
        if len(line.widths) != len(header.sizes):
            raise ValueError(f"it has {len(line.widths)} widths, but the header has {len(header.sizes)} sizes")
        return line

    return Samples(Path(path), header, _lines(path, rest, 2, Annotated[Sample, AfterValidator(fits)], skip_bad, warn))


def _lines(
    path: Path,
    texts: Iterable[str],
    first: int,
    schema: Any,
    skip_bad: bool = False,
    warn: Callable[[str], None] = lambda text: None,
) -> list:
    found = []
    for number, text in enumerate(texts, first):
        place, fix = f"{path}: line {number}", "repair or delete the line"
        try:
            found += [parse_json(text, schema, place, fix)] if text.strip() else []
        except UserError as error:
            if not skip_bad:
                raise
            warn(f"skipped: {error}")
    return found


def _append(path: Path, line: Schema) -> None:
    with writing(path), open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line.model_dump(mode="json", exclude_none=True, exclude_defaults=True)) + "\n")


# Times a network. Returns the result of `clock.timed`, and the latency in seconds of the reference (the network at its
# own widths) at about the same time.
Measure = Callable[[Network], Tuple[dict, float]]


def sample(
    net: Network,
    path: Path,
    setup: dict,
    hardware: dict,
    measure: Measure,
    n: int,
    seed: int = 0,
    slowdowns: Optional[Mapping[int, float]] = None,
    progress: Callable[[int, int], None] = lambda done, n: None,
    warn: Callable[[str], None] = lambda text: None,
    sampled: Optional[Sampled] = None,
) -> Samples:
    """Time networks with random widths and append them to `path` until it holds `n`; returns all of them.

    `sampled` defines which networks are drawn, by default the network itself at other widths.

    Widths are multiples of `step_of`, which can be half the granularity, so that the model learns what such widths
    cost. A new file begins with the granularity, which is measured unless the `slowdowns` are given. What is drawn
    depends on `seed` and on the contents of the file, so that an interrupted run resumes as if it had not been
    interrupted. While another process samples into the same file, this one waits. UserError: the file holds samples of
    something else.
    """
    path, sizes, sampled = Path(path), net.widths, sampled or Sampled(net)
    subject, seen = Subject.of(net, setup, hardware), {}
    with locked(path.parent, f".{path.name}.lock"):
        drop_torn_line(path)
        if path.exists() and path.stat().st_size:  # it is empty after a kill before the header was complete
            held = read_samples(path)
            apart = difference(held.header, subject, warn)
            if apart:
                raise UserError(f"{path}: holds samples of something else ({apart}); give another file")
        else:
            probes = _probed(net, measure) if slowdowns is None else None
            slow = slowdowns_of(probes) if probes else dict(slowdowns)
            how = {"probes": probes, "slowdowns": slow, "granularity": granularity(slow), "step": step_of(slow)}
            header = Header(format="gcp latency samples 1", in_turns=True, **dict(subject), **how)
            _append(path, header)
            held = Samples(path, header, [])
        for line, widths in zip(held.lines, held.widths):
            count_entries(sampled.layers(line.decisions), widths, seen)
        allowed = choices(sizes, held.header.step)
        for number in range(len(held.lines), n):
            rng = np.random.default_rng((seed, number))
            decisions = sampled.draw(rng)
            kinds = sampled.layers(decisions)
            widths = random_widths(sizes, allowed, kinds, seen, rng)
            count_entries(kinds, widths, seen)
            began = time.monotonic()
            row, reference = measure(sampled.network(widths, decisions))
            took = round(time.monotonic() - began, 3)
            how = {"decisions": decisions, "reference_s": reference, "took_s": took}
            line = Sample(widths=list(widths.values()), **row, **how)
            _append(path, line)
            held.lines.append(line)
            progress(number + 1, n)
        return held


def layers_alone(
    sampled: Sampled,
    networks: Sequence[Tuple[Widths, Mapping[str, Any]]],
    path: Path,
    measure: Measure,
    progress: Callable[[int, int], None] = lambda done, n: None,
) -> List[float]:
    """Per network, the sum of its layers' latencies, each timed by itself and divided by the reference's latency.

    `networks`: the widths and decisions of each (see `Sampled.network`). Every distinct (kind, width read, width made)
    is timed once and stored in `path` as a JSON line, so that an interrupted run can be resumed. While another process
    measures into the same file, this one waits.
    """
    path, wanted, parts = Path(path), {}, []
    for widths, decisions in networks:
        kinds = sampled.layers(decisions)
        parts.append([(layer.kind, *layer.widths(widths)) for layer in kinds])
        wanted.update({key: (layer, widths, decisions) for key, layer in zip(parts[-1], kinds)})
    with locked(path.parent, f".{path.name}.lock"):
        drop_torn_line(path)
        held = _lines(path, read_text(path).split("\n"), 1, LayerSample) if path.exists() else []
        known = {(line.kind, line.read, line.made): line.latency_s / line.reference_s for line in held}
        for number, (key, (layer, *network)) in enumerate(wanted.items(), 1):
            if key not in known:
                row, reference = measure(alone(sampled.network(*network), layer))
                known[key] = row["latency_s"] / reference
                line = dict(zip(("kind", "read", "made"), key), **row, reference_s=reference)
                _append(path, LayerSample(**line))
            progress(number, len(wanted))
    return [sum(known[key] for key in keys) for keys in parts]


def _probed(net: Network, measure: Measure, rounds: int = 3) -> List[Tuple[int, float, float]]:
    """(g, MACs, seconds) of each granularity probe; medians over rounds, so that no single busy moment decides."""
    cost, probes = macs(net), granularity_probes(net.widths)
    timed = [[measure(resized(net, widths)) for _, widths in probes] for _ in range(rounds)]
    parts = np.median([[row["latency_s"] / reference for row, reference in of] for of in timed], axis=0)
    whole = np.median([reference for of in timed for _, reference in of])
    return [(g, cost(widths), float(whole * part)) for (g, widths), part in zip(probes, parts)]
