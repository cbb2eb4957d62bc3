"""AutoSlim: a slimmable network narrowed one group at a time, each time where it costs the least accuracy.

Yu & Huang, "AutoSlim: Towards One-Shot Architecture Search for Channel Numbers", 2019 (arXiv 1903.11728), section 3:
the greedy search that AOWS is compared with. Differences here: a narrowing is judged by the increase of the validation
loss per unit of cost that it saves, so that any cost can be the budget; what the last step saves beyond the limit is
spent again; batch norms use batch statistics.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Dict, List, Set, Tuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from gcp import runtime
from gcp.cost.measured import fit_to_measured_budget
from gcp.graph.network import Network, Widths
from gcp.methods.base import METHODS, Outcome, Problem, Run, with_new_statistics
from gcp.methods.width_search import Levels, OwsOptions, narrow, shared_prefix, trained
from gcp.storage import drop_torn_line, locked, parse_json, read_text

EVALUATED = 256  # images per batch, from which batch norms take their statistics


class AutoslimOptions(OwsOptions):
    """The slimmable network, as for OWS, and how narrower networks are judged."""

    n_judged: int = Field(
        1024, ge=1, le=10**6, description="validation images by which each candidate is judged, 1 or more"
    )

    def label(self, cost: str) -> str:
        """The method's name in the literature."""
        return "AutoSlim"

    def key(self, round_to: int) -> str:
        """The same key as for OWS, since the training is the same."""
        own = self.model_dump(exclude={"n_judged"}, exclude_unset=True)
        return OwsOptions(**own).key(round_to)


class Judged(BaseModel):
    """Widths, in the order of the groups, and the slimmable network's validation loss with them."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    widths: List[int]
    loss: float


@METHODS.register("autoslim", AutoslimOptions)
def autoslim(problem: Problem, options: AutoslimOptions, run: Run) -> Outcome:
    """Train a slimmable network, then repeatedly narrow the group whose loss rises least per unit of cost saved.

    OWS's slimmable network is reused where there is one. Experiments that share it also share the losses of narrower
    networks; the images used to judge them are counted in each.
    """
    prefix = shared_prefix(run.shared, options, problem.budget.round_to)
    net, _ = trained(problem, options, prefix, run)
    search = _Greedy(problem, options, net, prefix)
    small, timings = fit_to_measured_budget(
        problem.budget, problem.budget.target * problem.budget.original, lambda aim: narrow(net, search.within(aim))
    )
    small, n_statistics = with_new_statistics(problem, small)
    row: Dict[str, Any] = {
        "steps": search.n_steps,
        "cost_kept": problem.budget.cost(small.widths) / problem.budget.original,
        "widths": small.widths,
        **({"timings": timings} if timings else {}),
    }
    run.log("solved", **row)
    n = options.n_images(len(problem.data.train), problem.batch)
    images = {"slimmable": n, "judging": len(search.judged) * search.n_judged, "statistics": n_statistics}
    return Outcome(small, {purpose: n for purpose, n in images.items() if n}, [row])


class _Greedy:
    """Widths narrowed level by level.

    The losses are kept in a file beside the slimmable network; its name encodes everything else that they depend on.
    `judged`: the widths whose losses this experiment has used; `n_steps`: those to the lowest limit asked for.
    """

    def __init__(self, problem: Problem, options: AutoslimOptions, net: Network, prefix: Path) -> None:
        from gcp.train.tasks import TASKS

        self._net, self._cost, self._task = net, problem.budget.cost, TASKS[problem.task]
        self._levels: Levels = options.grid(problem.net.widths, problem.budget.round_to)
        split, self._batches, self.n_judged = problem.data.validation, [], 0
        for x, y, n in split.batches(EVALUATED):
            if self.n_judged < options.n_judged:
                self._batches.append((x[:n], y[:n]))
                self.n_judged += n
        text = json.dumps([self.n_judged, self._levels])
        self._path = Path(f"{prefix}.judged-{hashlib.sha256(text.encode()).hexdigest()[:8]}.jsonl")
        self._known: Dict[Tuple[int, ...], float] = {}
        self._way: List[Widths] = [{name: of[-1] for name, of in self._levels.items()}]
        self.judged: Set[Tuple[int, ...]] = set()
        self.n_steps = 0

    def within(self, limit: float) -> Widths:
        """The widths after the first step that meets the limit, or after the last, widened as far as the limit allows.

        Waits while another process is searching.
        """
        with locked(self._path.parent, f"{self._path.name}.lock"):
            self._known = self._read()
            return self._widened(self._narrowed(limit), limit)

    def _narrowed(self, limit: float) -> Widths:
        way, n_steps, begun = self._way, 0, self._cost(self._way[0])
        with runtime.progress_bar("narrowed by AutoSlim", "%") as progress:
            while (now := self._cost(way[n_steps])) > limit:
                progress(int(100 * np.log(begun / now) / np.log(begun / limit)), 100)
                if n_steps + 1 == len(way):
                    candidates = self._next(way[-1], wider=False) or self._narrower(way[-1])
                    if not candidates:
                        break
                    loss = self._judge(way[-1])
                    rises = {name: (self._judge(other) - loss) / saved for name, (other, saved) in candidates.items()}
                    way.append(candidates[min(rises, key=lambda name: (rises[name], name))][0])
                n_steps += 1
        self.n_steps = max(self.n_steps, n_steps)
        return way[n_steps]

    def _widened(self, widths: Widths, limit: float) -> Widths:
        """The same search backwards: repeatedly the wider level of a group that lowers the loss most per unit of cost.

        One step of the narrowing can save much more than was left to save.
        """
        while True:
            left, loss = limit - self._cost(widths), self._judge(widths)
            candidates = self._next(widths, wider=True).items()
            gains = {n: (loss - self._judge(other)) / added for n, (other, added) in candidates if added <= left}
            best = max(gains, key=lambda name: (gains[name], name), default=None)
            if best is None or gains[best] <= 0:
                return widths
            widths = dict(candidates)[best][0]

    def _next(self, widths: Widths, wider: bool) -> Dict[str, Tuple[Widths, float]]:
        """For each group: the widths with its next level that adds cost (`wider`) or saves some, and how much."""
        found, now = {}, self._cost(widths)
        for name, of in self._levels.items():
            at = of.index(widths[name])
            for width in of[at + 1 :] if wider else reversed(of[:at]):
                other = {**widths, name: width}
                change = (self._cost(other) - now) * (1 if wider else -1)
                if change > 0:
                    found[name] = (other, change)
                    break
        return found

    def _narrower(self, widths: Widths) -> Dict[str, Tuple[Widths, float]]:
        """As `_next`, where no group alone saves any cost, as when several share a maximum: all count as saving 1."""
        below = {name: of[: of.index(widths[name])] for name, of in self._levels.items()}
        return {name: ({**widths, name: of[-1]}, 1.0) for name, of in below.items() if of}

    def _judge(self, widths: Widths) -> float:
        """The loss with these widths, from the file if it is there."""
        key = tuple(widths[name] for name in self._levels)
        self.judged.add(key)
        if key not in self._known:
            self._known[key] = self._loss(widths)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(Judged(widths=list(key), loss=self._known[key]).model_dump_json() + "\n")
        return self._known[key]

    def _read(self) -> Dict[Tuple[int, ...], float]:
        if not self._path.exists():
            return {}
        drop_torn_line(self._path)
        fix = "remove it, and the networks are judged again"
        texts = read_text(self._path, fix).splitlines()
        rows = [parse_json(text, Judged, f"{self._path}: line {n}", fix) for n, text in enumerate(texts, 1)]
        return {tuple(row.widths): row.loss for row in rows}

    def _loss(self, widths: Widths) -> float:
        """The mean validation loss of the slimmable network cut to these widths, with batch statistics in its norms."""
        from gcp.train.slimmable import loss_by_batch_statistics

        loss = loss_by_batch_statistics(narrow(self._net, widths), self._task, self._batches)
        return loss if np.isfinite(loss) else 1e30
