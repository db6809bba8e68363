"""Names: which leaves are weights, and what to say of a name nobody knows.

Imports nothing heavy: flags are checked with it before JAX starts.
"""

from collections.abc import Iterable, Mapping, Sequence
import difflib
from typing import TypeVar

Entry = TypeVar("Entry")

WEIGHTS = ("kernel", "embedding")  # last names of the leaves that are weights


def is_weight(path: Sequence[str]) -> bool:
  """Says whether a leaf is pruned and quantized unless told otherwise.

  Kernels and embeddings are; biases, norms and scales are not.
  """
  return bool(path) and path[-1] in WEIGHTS


def nearest(value: object, known: Iterable[str]) -> str:
  """Returns "; did you mean ...?" for the closest known name, or ''."""
  near = difflib.get_close_matches(str(value), list(known), 1)
  return f"; did you mean {near[0]!r}?" if near else ""


def find(what: str, name: str, table: Mapping[str, Entry]) -> Entry:
  """Returns the entry of a registry.

  Raises:
    ValueError: an unknown name; the message lists the known ones.
  """
  if name not in table:
    raise ValueError(
      f"{what} {name!r} is not one of {', '.join(table)}{nearest(name, table)}"
    )
  return table[name]
