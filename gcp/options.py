"""A section of a configuration: a frozen pydantic model whose descriptions are the hints of its error messages."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Set

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from gcp.errors import UserError

MOST, LONGEST = 2**31, 1000  # for what has no narrower bounds of its own

# Sections. Each description doubles as the hint in the error message about its key.


class Options(BaseModel):
    # Strict: `seed: "1"` or `pretrained: 1` is a mistake to report, not something to convert.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _within_reason(cls, value: Any) -> Any:
        """No count, text or list that nothing here could mean: before anything is allocated or started."""
        if isinstance(value, (int, float)) and abs(value) >= MOST:
            raise ValueError(f"should be less than {MOST:,}")
        if isinstance(value, (str, list, tuple)) and len(value) > LONGEST:
            raise ValueError(f"should have at most {LONGEST:,} {'characters' if isinstance(value, str) else 'items'}")
        return value

    # Keys that decide no number: in no fingerprint, whatever they say.
    UNCOUNTED: ClassVar[Set[str]] = set()
    # Keys that name files, or saved networks by their prefix: their contents are in the fingerprint, not their names.
    FILES: ClassVar[Set[str]] = set()

    def uncounted(self) -> Set[str]:
        """The keys that decide no number."""
        return self.UNCOUNTED

    def is_file(self, key: str) -> bool:
        """Whether the value of a key of `FILES` names a file."""
        return getattr(self, key) is not None


def listed(value: Any) -> Any:
    # YAML has lists where a frozen config needs tuples, and strict mode does not convert between them.
    return tuple(value) if isinstance(value, list) else value


def section(kind: type[Options], values: dict) -> Any:
    """One section from values given on a command line. UserError: what is wrong with them."""
    try:
        return kind.model_validate({key: value for key, value in values.items() if value is not None})
    except ValidationError as error:
        raise UserError(explained(error), key="option.value") from None


def explained(error: ValidationError) -> str:
    """The first thing that is wrong, in words: the key, the value, what it should be."""
    first = error.errors()[0]
    where = ".".join(str(key) for key in first["loc"])
    if first["type"] in ("missing", "extra_forbidden"):
        return f"{where} is missing" if first["type"] == "missing" else f"{where}: no such key"
    if first["type"] == "value_error" and isinstance(first["input"], dict):  # a combination; it says the values
        words = [where, str(first["ctx"]["error"])]
    else:
        words = [where, f"{shown(first['input'])} {_should(first)}"]
    return ": ".join(word for word in words if word)


def _should(error: Any) -> str:
    """What pydantic says that the value should be."""
    should = str(error["ctx"]["error"]) if error["type"] == "value_error" else error["msg"].replace("Input ", "")
    return should[:1].lower() + should[1:]


def shown(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    if isinstance(value, float) and not math.isfinite(value):
        text = f"{value} (not a finite number)"
    return text if len(text) <= 80 else text[:77] + "..."
