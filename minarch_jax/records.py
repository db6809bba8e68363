"""The tables that cross from training to analysis: write once, read anywhere.

A table is a directory of immutable parquet part files, `records/<table>/
<id>.parquet`. A part is written under a temporary name, synced and renamed, so
a file that exists is complete; its id is the content hash of everything its
rows depend on, so existing means done. No JAX here.
"""

from collections.abc import Mapping
import contextlib
import hashlib
import json
import os
from typing import Any, NamedTuple
import uuid

import polars as pl

SCHEMA_VERSION = 1

_S, _I, _F, _B = pl.String, pl.Int64, pl.Float64, pl.Boolean

_WHO = {
  "run_id": _S,
  "dataset": _S,
  "family": _S,
  "architecture": _S,
  "depth": _I,
  "params": _I,
  "seed": _I,
}

SCHEMAS: dict[str, dict[str, Any]] = {
  "networks": _WHO
  | {
    "fingerprint": _S,
    "macs": _I,
    "steps": _I,
    "epochs": _I,
    "train_loss": _F,
    "train_accuracy": _F,
    "val_loss": _F,
    "val_accuracy": _F,
    "test_loss": _F,
    "test_accuracy": _F,
    "diverged": _B,
    "diverged_epoch": _I,
    "num_classes": _I,
    "num_validation": _I,
    "num_test": _I,
    "seconds": _F,
  },
  "curves": {
    "run_id": _S,
    "dataset": _S,
    "architecture": _S,
    "seed": _I,
    "epoch": _I,
    "step": _I,
    "train_loss": _F,
    "train_accuracy": _F,
    "val_loss": _F,
    "val_accuracy": _F,
  },
  "compression": _WHO
  | {
    "criterion": _S,
    "scope": _S,
    "granularity": _S,
    "schedule": _S,
    "control": _S,
    "sparsity": _F,
    "achieved_sparsity": _F,
    "dead_layers": _I,
    "bits": _I,
    "activation_bits": _I,
    "quantizer": _S,
    "quant_granularity": _S,
    "val_accuracy": _F,
    "test_accuracy": _F,
    "bytes": _I,
    "nonzeros": _I,
    "macs": _I,
    "steps": _I,
  },
}

_KEYS = {
  "networks": ("run_id", "dataset", "architecture", "seed"),
  "curves": ("run_id", "dataset", "architecture", "seed", "epoch"),
  "compression": (
    "run_id",
    "dataset",
    "architecture",
    "seed",
    "schedule",
    "criterion",
    "scope",
    "granularity",
    "control",
    "quantizer",
    "quant_granularity",
    "bits",
    "activation_bits",
    "sparsity",
  ),
}


class Records(NamedTuple):
  """The three tables of a results directory; columns as in `SCHEMAS`."""

  networks: pl.DataFrame
  curves: pl.DataFrame
  compression: pl.DataFrame


def content_id(value: Any) -> str:
  """Hashes a JSON-able description to 20 hexadecimal digits.

  Dictionaries are hashed by content, not by order; tuples equal lists.
  """
  text = json.dumps(
    {"schema": SCHEMA_VERSION, "value": value},
    sort_keys=True,
    separators=(",", ":"),
    default=list,
  )
  return hashlib.sha256(text.encode()).hexdigest()[:20]


def _part(out: str, table: str, id: str) -> str:
  return os.path.join(out, "records", table, f"{id}.parquet")


def exists(out: str, table: str, id: str) -> bool:
  """Says whether a part is complete."""
  return os.path.exists(_part(out, table, id))


@contextlib.contextmanager
def atomic(path: str):
  """Yields a temporary name beside `path` and renames it there on success.

  The file is synced before the rename; on any error, Ctrl-C included, the
  temporary file is removed and `path` is untouched.
  """
  os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
  temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
  try:
    yield temporary
    with open(temporary, "rb+") as file:
      os.fsync(file.fileno())
    os.replace(temporary, path)
  finally:
    with contextlib.suppress(FileNotFoundError):
      os.remove(temporary)


def write(out: str, table: str, id: str, frame: pl.DataFrame) -> str:
  """Writes one part of a table and returns its path.

  Args:
    out: the results directory.
    table: networks, curves or compression.
    id: content hash of everything the rows depend on.
    frame: rows with exactly the columns of `SCHEMAS[table]`, in any order.

  Raises:
    ValueError: a column is missing or unknown.
  """
  schema = SCHEMAS[table]
  wrong = set(schema) ^ set(frame.columns)
  if wrong:
    raise ValueError(f"table {table}: columns {sorted(wrong)} do not match")
  path = _part(out, table, id)
  with atomic(path) as temporary:
    frame.select(pl.col(c).cast(t) for c, t in schema.items()).write_parquet(
      temporary
    )
  return path


def read_table(out: str, table: str) -> pl.DataFrame:
  """Reads a table: all parts, sorted by key, one row per key."""
  empty = pl.DataFrame(schema=SCHEMAS[table])
  keys = list(_KEYS[table])
  return (
    pl.concat([empty, *(rows for _, rows in parts(out, table))], how="diagonal")
    .unique(subset=keys, keep="first", maintain_order=True)
    .sort(keys)
  )


def parts(out: str, table: str) -> list[tuple[str, pl.DataFrame]]:
  """Reads the parts of a table as (id, rows in the order written)."""
  folder = os.path.join(out, "records", table)
  names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
  return [
    (name.removesuffix(".parquet"), pl.read_parquet(os.path.join(folder, name)))
    for name in names
    if name.endswith(".parquet")
  ]


def read(out: str) -> Records:
  """Reads the three tables of a results directory.

  Raises:
    FileNotFoundError: there are no records at `out`.
  """
  if not os.path.isdir(os.path.join(out, "records")):
    raise FileNotFoundError(
      f"no records in {out!r}; run `python -m experiments.study --out={out}`"
    )
  return Records(*(read_table(out, table) for table in Records._fields))


def write_json(path: str, value: Mapping[str, Any]) -> None:
  """Writes a JSON file atomically, keys in the given order."""
  with atomic(path) as temporary, open(temporary, "w") as file:
    json.dump(value, file, indent=2, default=list)
    file.write("\n")


def read_json(path: str) -> dict[str, Any]:
  """Reads a JSON file; {} when it does not exist."""
  if not os.path.exists(path):
    return {}
  with open(path) as file:
    return json.load(file)
