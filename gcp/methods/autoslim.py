"""AutoSlim: a slimmable network narrowed one group at a time, each time where it costs the least accuracy.

Yu & Huang, "AutoSlim: Towards One-Shot Architecture Search for Channel Numbers", 2019 (arXiv 1903.11728), section 3:
the greedy search that AOWS is compared with. Differences here: a narrowing is judged by the increase of the validation
loss per unit of cost that it saves, so that any cost can be the budget; batch norms use batch statistics.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

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


class Narrowed(BaseModel):
    """One greedy search step: the group narrowed, the widths left, their loss, and the number of candidates judged."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    group: str
    widths: Dict[str, int]
    loss: float
    judged: int


@METHODS.register("autoslim", AutoslimOptions)
def autoslim(problem: Problem, options: AutoslimOptions, run: Run) -> Outcome:
    """Train a slimmable network, then repeatedly narrow the group whose loss rises least per unit of cost saved.

    OWS's slimmable network is reused where there is one. The steps are the same for every limit on one cost, so
    experiments that share a dense network share them too; the images used to judge candidates are counted in each.
    """
    prefix = shared_prefix(run.shared, options, problem.budget.round_to)
    net, _ = trained(problem, options, prefix, run)
    search = _Greedy(problem, options, net, prefix)
    small, timings = fit_to_measured_budget(
        problem.budget, problem.budget.target * problem.budget.original, lambda aim: narrow(net, search.within(aim))
    )
    small, n_statistics = with_new_statistics(problem, small)
    row: Dict[str, Any] = {
        "steps": len(search.walked),
        "cost_kept": problem.budget.cost(small.widths) / problem.budget.original,
        "widths": small.widths,
        **({"timings": timings} if timings else {}),
    }
    run.log("solved", **row)
    n = options.n_images(len(problem.data.train), problem.batch)
    judged = sum(step.judged for step in search.walked)
    images = {"slimmable": n, "judging": judged * search.n_judged, "statistics": n_statistics}
    return Outcome(small, {purpose: n for purpose, n in images.items() if n}, [row])


class _Greedy:
    """Widths narrowed level by level, as far as they have been asked for.

    The steps are kept in a file beside the slimmable network; its name encodes everything else that they depend on.
    `walked`: the steps to the lowest limit asked for.
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
        self._widest = {name: of[-1] for name, of in self._levels.items()}
        costs = [self._cost({**self._widest, name: n}) for name, of in self._levels.items() for n in of]
        text = json.dumps([self.n_judged, costs])
        self._path = Path(f"{prefix}.narrowed-{hashlib.sha256(text.encode()).hexdigest()[:8]}.jsonl")
        self.walked: List[Narrowed] = []

    def within(self, limit: float) -> Widths:
        """The widths of the first step whose cost is within the limit; the narrowest of all if there is none.

        Waits while another process is searching.
        """
        with locked(self._path.parent, f"{self._path.name}.lock"):
            steps = self._read()
            n = next((n for n, step in enumerate([None, *steps]) if self._at(step) <= limit), None)
            if n is None:
                self._go_on(steps, limit)
                n = len(steps)
        if n > len(self.walked):
            self.walked = steps[:n]
        return steps[n - 1].widths if n else self._widest

    def _at(self, step: Optional[Narrowed]) -> float:
        """The cost after a step; for None, the cost at the start."""
        return self._cost(self._widest if step is None else step.widths)

    def _read(self) -> List[Narrowed]:
        if not self._path.exists():
            return []
        drop_torn_line(self._path)
        fix = "remove it, and the search starts afresh"
        texts = read_text(self._path, fix).splitlines()
        return [parse_json(text, Narrowed, f"{self._path}: line {n}", fix) for n, text in enumerate(texts, 1)]

    def _go_on(self, steps: List[Narrowed], limit: float) -> None:
        """Append steps, also to the file, until the limit is met or no group can be narrowed any further."""
        widths, loss = (steps[-1].widths, steps[-1].loss) if steps else (self._widest, self._loss(self._widest))
        begun = self._cost(widths)
        with runtime.progress_bar("narrowed by AutoSlim", "%") as progress:
            while (now := self._cost(widths)) > limit:
                progress(int(100 * np.log(begun / now) / np.log(begun / limit)), 100)
                candidates = self._candidates(widths)
                if not candidates:
                    break
                losses = {name: self._loss(other) for name, (other, _) in candidates.items()}
                name = min(losses, key=lambda each: ((losses[each] - loss) / candidates[each][1], each))
                widths, loss = candidates[name][0], losses[name]
                steps.append(Narrowed(group=name, widths=widths, loss=loss, judged=len(losses)))
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(steps[-1].model_dump()) + "\n")

    def _candidates(self, widths: Widths) -> Dict[str, Tuple[Widths, float]]:
        """For each group that can be narrowed: the widths with its next level that saves cost, and the cost saved."""
        found, now = {}, self._cost(widths)
        for name, of in self._levels.items():
            for width in reversed(of[: of.index(widths[name])]):
                other = {**widths, name: width}
                saved = now - self._cost(other)
                if saved > 0:
                    found[name] = (other, saved)
                    break
        return found

    def _loss(self, widths: Widths) -> float:
        """The mean validation loss of the slimmable network cut to these widths, with batch statistics in its norms."""
        from gcp.train.slimmable import loss_by_batch_statistics

        loss = loss_by_batch_statistics(narrow(self._net, widths), self._task, self._batches)
        return loss if np.isfinite(loss) else 1e30
