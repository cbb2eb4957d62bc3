"""Names for things to choose from: methods, criteria, costs, data sets, tasks and solvers each have a `Registry`."""

from __future__ import annotations

import difflib
from typing import Any, Callable, Dict, Generic, Iterator, Type, TypeVar

from gcp.errors import UserError
from gcp.options import Options

T = TypeVar("T")


class Registry(Generic[T]):
    """Entries by name, in the order of registration; `kind` is what an entry is called in messages.

    `options[name]` is the class of the entry's own options, or plain `Options` if it has none. Whatever a table, a
    figure or an estimate needs to know about an entry is an attribute of the entry.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: Dict[str, T] = {}
        self.options: Dict[str, Type[Options]] = {}

    def register(self, name: str, options: Type[Options] = Options, **facts: Any) -> Callable[[T], T]:
        """A decorator that adds an entry, with `facts` as its attributes. Raises ValueError if the name is taken."""
        if name in self._entries:
            raise ValueError(f"the {self.kind} '{name}' is registered twice")

        def add(entry: T) -> T:
            self._entries[name], self.options[name] = entry, options
            for key, value in facts.items():
                setattr(entry, key, value)
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        """The entry with this name. Raises UserError if there is none."""
        if name not in self._entries:
            near = difflib.get_close_matches(name, self._entries, n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(self._entries)}"
            raise UserError(f"unknown {self.kind} '{name}'; {hint}")
        return self._entries[name]

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)
