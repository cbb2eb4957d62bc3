"""The section `prune` of a configuration: the method, its target and its options."""

from __future__ import annotations

# Optional, not `X | None`: pydantic evaluates the annotations, and Python 3.9 cannot evaluate that form.
from typing import Annotated, Any, ClassVar, Dict, Literal, Optional, Set, Tuple

from pydantic import Field, field_validator, model_validator

from gcp.options import Options, listed


class Prune(Options):
    """Which channels go, and how. Keys of the other methods are ignored by a method."""

    ONLY_OF: ClassVar[Dict[str, Set[str]]] = {
        "gcp": {
            "score",
            "iterations",
            "schedule",
            "regularise_epochs",
            "recover_epochs",
            "lr",
            "recover_lr",
            "momentum",
            "lam",
            "max_cut",
        },
        "uniform": {"criterion"},
    }
    YOUNGER: ClassVar[Set[str]] = {"budget", "latency_model", "target_ms", "target_images_per_second", "max_cut"}

    method: Annotated[Literal["none", "gcp", "uniform"], Field(description="the pruning method")] = "none"
    objective: Annotated[
        Literal["macs", "params", "latency"],
        Field(description="the cost that a channel is weighed against, and that the target is about"),
    ] = "macs"
    budget: Annotated[
        Optional[Literal["macs", "params", "latency"]],
        Field(description="the cost that the target is about, where that is not the objective"),
    ] = None
    target: Annotated[float, Field(gt=0, le=1, description="the fraction of the cost to keep, in (0, 1]")] = 1.0
    target_ms: Annotated[
        Optional[float], Field(gt=0, description="in place of target, for latency: milliseconds for a batch")
    ] = None
    target_images_per_second: Annotated[
        Optional[float], Field(gt=0, description="in place of target, for latency: throughput")
    ] = None
    latency_model: Annotated[
        Optional[str], Field(min_length=1, description="a model that `scripts/latency.py fit` wrote")
    ] = None
    score: Annotated[Literal["paper", "relative", "taylor"], Field(description="gcp: what a channel is ranked by")] = (
        "taylor"
    )
    round_to: Annotated[
        Optional[int],
        Field(ge=1, description="every final width is a multiple of this, 1 or more; auto: the model's granularity"),
    ] = 8
    criterion: Annotated[Literal["l1", "random"], Field(description="uniform: which channels of a group go")] = "l1"
    iterations: Annotated[int, Field(ge=1, description="gcp: number of steps to the target, 1 or more")] = 4
    schedule: Annotated[
        Literal["equal", "geometric"], Field(description="gcp: steps of equal cost (the paper's) or of equal ratio")
    ] = "geometric"
    max_cut: Annotated[
        Optional[float],
        Field(gt=0, lt=1, description="gcp: the largest part of a group that may go in one iteration, in (0, 1)"),
    ] = None
    regularise_epochs: Annotated[float, Field(gt=0, description="gcp: epochs with penalty per iteration, above 0")] = (
        1.0
    )
    recover_epochs: Annotated[
        float, Field(ge=0, description="gcp: epochs without penalty per iteration, 0 or more")
    ] = 1.0
    lr: Annotated[float, Field(gt=0, description="gcp: learning rate with penalty, above 0")] = 0.01
    recover_lr: Annotated[float, Field(gt=0, description="gcp: learning rate without penalty, above 0")] = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1, description="gcp: in [0, 1)")] = 0.9
    lam: Annotated[
        Tuple[Annotated[float, Field(ge=0)], ...],
        Field(
            min_length=1, description="gcp: a list of penalties, such as [0.1]; the best on validation loss is taken"
        ),
    ] = (0.1,)

    _lists = field_validator("lam", mode="before")(listed)

    @field_validator("round_to", mode="before")
    @classmethod
    def _auto(cls, value: Any) -> Any:
        return None if value == "auto" else value

    @property
    def counted(self) -> str:
        """The cost that the target is about."""
        return self.budget or self.objective

    @model_validator(mode="after")
    def _check(self) -> Prune:
        targets = {
            key
            for key in ("target", "target_ms", "target_images_per_second")
            if key in self.model_fields_set and getattr(self, key) is not None
        }
        if self.counted != "latency" and targets - {"target"}:
            raise ValueError(
                f"{min(targets - {'target'})} is for latencies, but the target is about {self.counted}; "
                "set prune.objective or prune.budget to latency"
            )
        if len(targets) > 1:
            raise ValueError(f"{' and '.join(sorted(targets))} are the same thing said twice; keep one of them")
        if self.latency_model is None and "latency" in (self.objective, self.budget):
            raise ValueError(
                "latency needs a model of it; set prune.latency_model to a file that `scripts/latency.py fit` wrote"
            )
        if self.latency_model is None and self.round_to is None:
            raise ValueError(
                "round_to: auto is a latency model's granularity; set prune.latency_model to a file that "
                "`scripts/latency.py fit` wrote, or prune.round_to to a number"
            )
        if self.method == "none" and self.target != 1:
            raise ValueError(
                f"target: {self.target:g} cannot be met by method: none; set prune.method to gcp or uniform"
            )
        if self.method != "none" and not targets:
            raise ValueError(
                f"method: {self.method} needs a target; set prune.target to the fraction of the cost to keep"
            )
        return self
