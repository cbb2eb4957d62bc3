"""Every key of a configuration as a Markdown page, generated from the schema that checks them."""

from __future__ import annotations

import json
import typing
from typing import Any, Container, Iterator, List, Literal, Tuple, Type

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gcp.data.base import DATASETS, Data
from gcp.experiment.config import Config

INTRODUCTION = """# Configuration

A configuration is a YAML file; `scripts/run.py FILE` runs it. Keys are in sections, as below; `--set section.key=value`
sets one on the command line, and `base: other.yaml` builds on another file, relative to this one. All other paths are
relative to the working directory, and may begin with `~` for the home folder. A key that is not known, or a value that
does not fit, ends in one line that says what would be right, before anything is run.

This page is generated from the schema: `python scripts/docs.py`.
"""


def markdown() -> str:
    """The whole page."""
    sections = [INTRODUCTION]
    for path, model in _sections("", Config):
        sections += _table(f"`{path}`" if path else "Top level", model, model.model_fields)
    for name, kind in DATASETS.options.items():
        common = Data.model_fields
        own = {key for key, field in kind.model_fields.items() if key not in common or _differs(field, common[key])}
        sections += _table(f"`data` with `name: {name}`: keys of its own", kind, own)
    return "\n".join(sections)


def _differs(field: FieldInfo, other: FieldInfo) -> bool:
    """Whether a key takes other values, or has another default or meaning, than the key of this name elsewhere."""
    return any(getattr(field, part) != getattr(other, part) for part in ("annotation", "default", "description"))


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _sections(path: str, model: Type[BaseModel]) -> Iterator[Tuple[str, Type[BaseModel]]]:
    yield path, model
    for key, field in model.model_fields.items():
        here, of = f"{path}.{key}" if path else key, typing.get_args(field.annotation)
        if _is_section(field.annotation):
            yield from _sections(here, field.annotation)
        for kind in of:  # sections in a list, or by name
            if _is_section(kind):
                yield from _sections(here, kind)


def _table(title: str, model: Type[BaseModel], keys: Container[str]) -> List[str]:
    """The table of a section's keys: those in `keys` that hold values; empty if there are none."""
    fields = {k: field for k, field in model.model_fields.items() if k in keys and not _is_section(field.annotation)}
    if not fields:
        return []
    lines = [f"## {title}", "", " ".join((model.__doc__ or "").split()), ""]
    lines += ["| key | value | default | meaning |", "|:----|:------|:--------|:--------|"]
    for key, field in fields.items():
        default = "required" if field.is_required() else f"`{json.dumps(field.get_default(call_default_factory=True))}`"
        cells = (f"`{key}`", _kind(field.annotation), default, field.description or "")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return ["\n".join([*lines, ""])]


def _kind(annotation: Any) -> str:
    """A type in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is typing.Annotated:
        return _kind(arguments[0])
    if origin is typing.Union:
        words = ["`null`" if kind is type(None) else _kind(kind) for kind in arguments]
        return f"{', '.join(words[:-1])} or {words[-1]}"
    if origin is dict or _is_section(annotation):
        return "section"
    if origin is tuple:
        return f"list of {'sections' if _is_section(arguments[0]) else _kind(arguments[0])}"
    words = {int: "whole number", float: "number", bool: "`true` or `false`", str: "text"}
    return words.get(annotation, str(annotation))
