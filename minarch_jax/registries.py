"""What can be named by a flag: one line here adds one.

A registry maps names to entries. An entry may be written as "module:name" and
is then imported when first asked for, so listing names (--help, checks of
flags) starts neither JAX nor anything else heavy.
"""

from collections.abc import Iterator, MutableMapping
import importlib
from typing import Any


class Registry(MutableMapping[str, Any]):
  """Names and what they stand for, in the order in which they are listed."""

  def __init__(self, **entries: Any):
    self._entries = entries

  def __getitem__(self, name: str) -> Any:
    entry = self._entries[name]
    if isinstance(entry, str):
      module, _, attribute = entry.partition(":")
      entry = getattr(importlib.import_module(module), attribute)
      self._entries[name] = entry
    return entry

  def __setitem__(self, name: str, entry: Any) -> None:
    self._entries[name] = entry

  def __delitem__(self, name: str) -> None:
    del self._entries[name]

  def __contains__(self, name: object) -> bool:
    return name in self._entries  # without importing the entry

  def __iter__(self) -> Iterator[str]:
    return iter(self._entries)

  def __len__(self) -> int:
    return len(self._entries)
