"""A section of a configuration: a frozen pydantic model whose field descriptions serve as hints in error messages."""

from __future__ import annotations

import math
import os
import re
from difflib import get_close_matches
from typing import Any, ClassVar, Iterator, Mapping, Set, Tuple

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator, model_validator

from gcp.errors import UserError

MOST, LONGEST = 2**31, 1000  # for values that have no narrower bounds of their own


class Options(BaseModel):
    # Strict: `seed: "1"` or `pretrained: 1` is a mistake to report, not something to convert.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _within_reason(cls, value: Any) -> Any:
        """Reject numbers, texts and lists of absurd size before anything is allocated or started."""
        if isinstance(value, (int, float)) and abs(value) >= MOST:
            raise ValueError(f"should be less than {MOST:,}")
        if isinstance(value, (str, list, tuple)) and len(value) > LONGEST:
            raise ValueError(f"should have at most {LONGEST:,} {'characters' if isinstance(value, str) else 'items'}")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _at_home(cls, value: Any, info: ValidationInfo) -> Any:
        """Expand a leading `~` in paths, as shells do on a command line: no folder of that name should be created."""
        if info.field_name not in cls.FILES | cls.FOLDERS or not isinstance(value, str):
            return value
        path = os.path.expanduser(value)
        if path.startswith("~") and info.field_name in cls.FOLDERS:  # of a user that does not exist; it would be made
            raise ValueError("should not begin with a user that this machine does not have")
        return path

    def mistakes(self) -> Iterator[str]:
        """What is wrong with combinations of values that are each valid on their own."""
        return iter(())

    @model_validator(mode="after")
    def _check(self) -> Options:
        for mistake in self.mistakes():
            raise ValueError(mistake)
        return self

    # Keys that do not affect results: no fingerprint includes them, whatever their values.
    UNCOUNTED: ClassVar[Set[str]] = set()
    # Keys that name files, or saved networks by prefix: fingerprints cover the files' contents, not their names.
    FILES: ClassVar[Set[str]] = set()
    FOLDERS: ClassVar[Set[str]] = set()  # keys that name folders

    def uncounted(self) -> Set[str]:
        """The keys that do not affect results."""
        return self.UNCOUNTED

    def is_file(self, key: str) -> bool:
        """Whether the value of `key`, which is one of `FILES`, names a file."""
        return getattr(self, key) is not None


def listed(value: Any) -> Any:
    """A list as a tuple: YAML yields lists where a frozen section needs tuples, and strict mode does not convert."""
    return tuple(value) if isinstance(value, list) else value


def changed(options: Options, values: Mapping[str, Any]) -> Options:
    """The section with other values for some keys; dotted keys are those of nested sections.

    If a key holds a list, a single value stands for a list of one. Raises ValidationError if the values do not fit.
    """
    own, within = {key: getattr(options, key) for key in options.model_fields_set}, {}
    for name, value in values.items():
        key, dot, rest = name.partition(".")
        if dot:
            within.setdefault(key, {})[rest] = value
        else:
            own[key] = (value,) if isinstance(getattr(options, key), tuple) else value
    own |= {key: changed(getattr(options, key), of) for key, of in within.items()}
    return type(options).model_validate(own)


def section(kind: type[Options], values: dict) -> Any:
    """One section from command-line values, where None means not given. Raises UserError if a value is invalid."""
    try:
        return kind.model_validate({key: value for key, value in values.items() if value is not None})
    except ValidationError as error:
        raise UserError(explained(error), key="option.value") from None


def explained(error: ValidationError) -> str:
    """The first thing that is wrong, in words: the key, its value, and what it should be."""
    first = error.errors()[0]
    return (".".join(str(key) for key in first["loc"]) + described(first)[1]).lstrip(": ")


def described(error: Any, hint: str = "") -> Tuple[str, str]:
    """One of pydantic's errors as a kind of mistake, and in words that follow the key; `hint` describes the key."""
    kind, in_own_words = error["type"], error["type"] == "value_error"
    if kind == "missing":
        return "missing-key", " is missing" + (f": {hint}" if hint else "")
    if kind in ("extra_forbidden", "invalid_key"):
        return "unknown-key", ": no such key"
    should = str(error["ctx"]["error"]) if in_own_words else error["msg"].replace("Input ", "")
    if in_own_words and isinstance(error["input"], dict):  # a combination, whose message states the values
        return "combination", f": {should}"
    should = should[:1].lower() + should[1:] + (f" ({hint})" if hint else "")
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        should += "".join(f"; did you mean '{near}'?" for near in get_close_matches(str(error["input"]), known, n=1))
    return "value", f": {shown(error['input'])} {should}"


def shown(value: Any) -> str:
    """A value as text for a message, shortened if it is long."""
    text = "nothing" if value is None else repr(value)
    if isinstance(value, float) and not math.isfinite(value):
        text = f"{value} (not a finite number)"
    return text if len(text) <= 80 else text[:77] + "..."
