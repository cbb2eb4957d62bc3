"""The section `search` of a configuration: which options are tried, with which values, and where trials are kept."""

from __future__ import annotations

import math

# Optional, not `X | None`: pydantic evaluates the annotations, and Python 3.9 cannot evaluate that form.
from typing import Any, ClassVar, Dict, Iterator, List, Literal, Optional, Set, Tuple, Union

from pydantic import Field, field_serializer, field_validator

from gcp.errors import without_passwords
from gcp.options import Options, listed

Number = Union[int, float]
Choice = Union[bool, int, float, str, None]


class Range(Options):
    """The values that trials choose from for a key, under its dotted name: a range of numbers or a list of choices."""

    low: Optional[Number] = Field(None, description="lower end of a range")
    high: Optional[Number] = Field(None, description="upper end of a range, above low")
    log: bool = Field(False, description="true: drawn uniformly on a log scale, for ranges of several powers of ten")
    choices: Tuple[Choice, ...] = Field((), max_length=100, description="instead of a range: a list of values")

    _lists = field_validator("choices", mode="before")(listed)

    @property
    def is_range(self) -> bool:
        """Whether this is a range, and not a list of choices."""
        return not self.choices

    @property
    def ends(self) -> Tuple[Choice, ...]:
        """The values that are checked in place of all others: both ends of a range, or every choice."""
        return self.choices or (self.low, self.high)

    @property
    def is_whole(self) -> bool:
        """Whether this is a range of whole numbers, which one with whole ends is."""
        return self.is_range and isinstance(self.low, int) and isinstance(self.high, int)

    def holds(self, value: Any) -> bool:
        """Whether a trial can choose the value."""
        if self.choices:
            return value in self.choices
        return value is not None and self.low <= value <= self.high and (not self.is_whole or value == int(value))

    def mistakes(self) -> Iterator[str]:
        """See `Options`."""
        n_ends = (self.low is not None) + (self.high is not None)
        if (self.choices and (n_ends or self.log)) or (not self.choices and n_ends < 2):
            yield "give either low and high, with or without log: true, or choices"
        elif len({(isinstance(choice, bool), choice) for choice in self.choices}) < len(self.choices):  # 1 and 1.0, too
            yield f"choices: {list(self.choices)} contains a duplicate value"
        elif not self.choices and self.low >= self.high:
            yield f"the range from {self.low} to {self.high} is empty; low should be below high"
        elif self.log and self.low <= 0:
            yield f"low: {self.low} has no logarithm; set it above 0, or log to false"


class Search(Options):
    """Trials of values for options; the one with the lowest validation loss after recovering or fine-tuning wins."""

    # Where trials are kept does not affect results.
    UNCOUNTED: ClassVar[Set[str]] = {"storage"}

    trials: int = Field(
        0, ge=0, le=10**4, description="trials of a run, or of each iteration (see scope); 0: no search"
    )
    scope: Literal["iteration", "run"] = Field(
        "iteration",
        description="iteration: each of the method's iterations is tried with several values, all from the same "
        "network, and the best one is continued; run: pruning and fine-tuning are tried as a whole",
    )
    sampler: Literal["tpe", "random", "grid"] = Field(
        "tpe",
        description="how values are drawn: near those of good trials (tree-structured Parzen estimator), at random, or "
        "every combination of the choices in turn",
    )
    pruner: Literal["none", "median", "halving"] = Field(
        "none",
        description="which trials are stopped early, by their validation loss after each epoch of recovering (scope: "
        "iteration) or fine-tuning (scope: run): none, those above the median, or by successive halving",
    )
    storage: Optional[str] = Field(
        None,
        min_length=1,
        repr=False,
        description="a database that several machines can share, such as postgresql://USER@HOST/DATABASE or "
        "mysql://USER@HOST/DATABASE; null: a file in the run's folder",
    )
    parameters: Dict[str, Range] = Field(
        {}, description="the values to try for each key, such as `prune.gcp.lam: {low: 0.01, high: 1.0, log: true}`"
    )

    @field_validator("parameters", mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Any:
        """Turn nested keys, as `--set search.parameters.prune.gcp.lam=...` gives them, into dotted keys."""
        return dict(_dotted(value, "")) if isinstance(value, dict) else value

    @field_serializer("storage", when_used="json")
    def _without_password(self, value: Optional[str]) -> Optional[str]:
        """The value that is written: configurations and records must not contain passwords."""
        return None if value is None else without_passwords(value)

    def __hash__(self) -> int:
        """A hash, as every section has one; its dictionary has none of its own."""
        return hash(tuple((key, tuple(of.items()) if isinstance(of, dict) else of) for key, of in self))

    @property
    def per_iteration(self) -> bool:
        """Whether each iteration of a method is searched by itself."""
        return self.trials > 0 and self.scope == "iteration"

    @property
    def per_run(self) -> bool:
        """Whether whole runs are tried."""
        return self.trials > 0 and self.scope == "run"

    def mistakes(self) -> Iterator[str]:
        """See `Options`."""
        ranges = sorted(name for name, tried in self.parameters.items() if tried.is_range)
        n_points = math.prod(len(tried.choices) for tried in self.parameters.values())
        if self.trials and not self.parameters:
            yield "trials without parameters; set search.parameters to the keys to search and their ranges"
        if self.sampler == "grid" and ranges:
            yield f"sampler: grid tries choices, but {ranges[0]} has a range; give choices, or use another sampler"
        if self.sampler == "grid" and self.trials > n_points:
            yield f"trials: {self.trials} is more than the {n_points} combinations of the grid; set it to {n_points}"
        if self.storage is not None and " " in self.storage:
            yield "storage contains a space; write it as %20"
        if self.storage is not None and not self.storage.startswith(tuple(SERVERS)):
            yield (
                "storage should be a URL such as postgresql://USER@HOST/DATABASE or mysql://USER@HOST/DATABASE, or "
                "null for a file in the run's folder"
            )


SERVERS = ("postgresql://", "postgresql+psycopg://", "mysql://", "mysql+pymysql://")


def _dotted(values: Dict[Any, Any], prefix: str) -> List[Tuple[str, Any]]:
    found = []
    for key, value in values.items():
        is_section = isinstance(value, dict) and value and not value.keys() & Range.model_fields.keys()
        is_section = is_section and all(isinstance(of, dict) for of in value.values())
        found += _dotted(value, f"{prefix}{key}.") if is_section else [(f"{prefix}{key}", value)]
    return found
