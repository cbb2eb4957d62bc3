"""Patterns: what a search has decided, as files that can be read, edited, frozen in part, and used elsewhere."""

from __future__ import annotations

from pathlib import Path

# Optional, not `X | None`: pydantic evaluates the annotations, and Python 3.9 cannot evaluate that form.
from typing import Annotated, Any, Dict, List, Optional, Tuple, Union

from pydantic import Field, ValidationError

from gcp.cost.sampling import Count, Schema
from gcp.errors import UserError
from gcp.options import explained
from gcp.search.space import Space
from gcp.storage import read_yaml, write_text, yaml_text

FIX = "see docs/search.md for what a pattern contains"
HEAD = (
    "# What a search has decided about the network; all else is as in the network itself. Names can have wildcards\n"
    "# (*, ?, [...]); the last match counts. A width with a decimal point is a fraction of the group's own width.\n"
)
Name = Annotated[str, Field(min_length=1, max_length=1000)]
Decided = Union[bool, int, float, Annotated[str, Field(max_length=100)]]


class Pattern(Schema):
    """Decisions by name, for a network with this input; `found` is what the search reports about itself."""

    network: Name
    input: Tuple[Count, Count, Count]
    classes: Count
    decisions: Dict[Name, Decided]
    found: Optional[Dict[Name, Any]] = None


def read(path: Path) -> Pattern:
    """Read a pattern, as written by `write` or by a person. UserError: no such file, or a key is missing or unknown."""
    values = read_yaml(path, FIX)
    if not isinstance(values, dict):
        raise UserError(f"{path}: contains no keys; {FIX}", "pattern.format")
    if isinstance(values.get("input"), list):
        values["input"] = tuple(values["input"])
    try:
        return Pattern.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{path}: {explained(error)}; {FIX}", "pattern.format") from None


def of(space: Space, decisions: Dict[str, Any], found: Optional[Dict[str, Any]] = None) -> Pattern:
    """A pattern of the decisions that differ from the network's own, without those about dropped blocks.

    A multiplier is replaced by the widths that follow from it.
    """
    net, left = space.net, set(space.group_of(space.rewritten(decisions)).values())
    widths = {f"width:{group}": n for group, n in space.widths(decisions).items() if group in left}
    own = {**dict(space.structure(decisions)), **{key: n for key, n in widths.items() if n != space.own[key]}}
    return Pattern(network=net.name, input=net.input_shape, classes=net.n_classes, decisions=own, found=found)


def write(path: Path, pattern: Pattern) -> None:
    """Write a pattern as YAML, whole or not at all. UserError: it cannot be written."""
    values = pattern.model_dump(exclude_none=True)
    values["input"] = list(values["input"])
    write_text(path, HEAD + yaml_text(values))


def transferred(pattern: Pattern, space: Space, other: Space) -> Pattern:
    """The pattern for another network, at the same fractions of its widths; `space` is that of the pattern's network.

    Decisions that the other network does not have are left out. UserError: it has none of those in the pattern.
    """
    decisions: Dict[str, Any] = {}
    for name, value in space.resolved(pattern.decisions).items():
        if name in other.own:
            is_width = name.startswith("width:")
            decisions[name] = other.rounded(value / space.own[name], other.own[name]) if is_width else value
    if pattern.decisions and not decisions:
        wrong = f"network '{other.net.name}' has none of the layers named in the pattern of '{pattern.network}'"
        raise UserError(f"{wrong}; name a network of the same family", "pattern.other")
    return of(other, decisions, pattern.found)


def changes(space: Space, pattern: Pattern) -> List[Tuple[str, Any, Any]]:
    """(decision, the network's own value, the pattern's value) for each that differs, in the order of the network."""
    values = space.resolved(pattern.decisions)
    return [(name, own, values[name]) for name, own in space.own.items() if name in values and values[name] != own]
