"""The tables that cross from training to analysis: write once, read anywhere.

A table is a directory of immutable parquet part files, `records/<table>/
<id>.parquet`. A part is written under a temporary name, synced and renamed, so
a file that exists is complete; its id is the content hash of everything its
rows depend on, so existing means done. What it holds is checked whenever it is
read. No JAX here.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import glob
import hashlib
import io
import itertools
import json
import operator
import os
from typing import Any, NamedTuple
import uuid

import numpy as np
import polars as pl

from minarch_jax import checksums
from minarch_jax.config import ConfigError

SCHEMA_VERSION = 3

_S, _I, _F, _B = pl.String, pl.Int64, pl.Float64, pl.Boolean
_BITS = pl.Binary  # packed, the first image in the highest bit

_WHO = {
  "run_id": _S,
  "dataset": _S,
  "family": _S,
  "architecture": _S,
  "depth": _I,
  "params": _I,
  "seed": _I,
}

# A layer, numbered from the input, of so many groups, pruned by a criterion.
_LAYER = _WHO | {
  "criterion": _S,
  "granularity": _S,
  "layer": _S,
  "number": _I,
  "groups": _I,
  "sparsity": _F,
}

# What was done to a network: nothing, or a cell of the compression grid.
_SETTING = {
  "criterion": _S,
  "scope": _S,
  "granularity": _S,
  "schedule": _S,
  "control": _S,
  "sparsity": _F,
  "bits": _I,
  "activation_bits": _I,
  "quantizer": _S,
  "quant_granularity": _S,
}

SCHEMAS: dict[str, dict[str, Any]] = {
  "networks": _WHO
  | {
    "fingerprint": _S,
    "fold": _I,
    "arm": _S,
    "init": _S,
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
    "val_loss_even": _F,
    "val_loss_odd": _F,
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
  "hits": {name: _WHO[name] for name in ("run_id", "dataset", "architecture")}
  | {"seed": _I, **_SETTING, "fold": _I, "images": _I, "hits": _BITS},
  "probes": _WHO
  | {
    "step": _I,
    "loss": _F,
    "dead": _F,
    "logit_scale": _F,
    "gradient_norm": _F,
    "sharpness": _F,
    "limit": _F,
  },
  "sensitivity": _LAYER | {"val_accuracy": _F},
  "overlap": _LAYER
  | {"other": _I, "overlap": _F, "chance": _F, "shuffled": _F},
}

NETWORK = ("run_id", "dataset", "architecture", "seed")
ALL_LAYERS = "all"  # the `layer` that is the whole network
NONE = "none"  # a control, a quantizer or a granularity that is not there

# The arms of a study. All analyses look at the main one, the grid; claims ask
# the others (`stages/arms.py` says what they are): C3 and C6 fresh seeds of
# what the main arm chose, C2 longer training on noisy labels, C8 harder images.
MAIN = "main"
CONFIRMATION, OVERFITTING, HARDER = "confirmation", "overfitting", "harder"

# The setting under which the hits of a network as trained stand.
AS_TRAINED: dict[str, Any] = {name: NONE for name in _SETTING} | {
  "sparsity": 0.0,
  "bits": 32,
  "activation_bits": 32,
}

_CUT = ("criterion", "granularity", "layer", "sparsity")

# What says which row of a table it is.
KEYS = {
  "networks": NETWORK,
  "curves": (*NETWORK, "epoch"),
  "probes": (*NETWORK, "step"),
  "sensitivity": (*NETWORK, *_CUT),
  "overlap": (*NETWORK, *_CUT, "other"),
  "compression": (
    *NETWORK,
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


KEYS["hits"] = KEYS["compression"]


class Records(NamedTuple):
  """The tables every study leaves; columns as in `SCHEMAS`.

  Attributes:
    networks, curves, compression: what was trained and measured.
    hits: which validation images each of these networks classified correctly;
      without them, images are taken to be those that all seeds share.
  """

  networks: pl.DataFrame
  curves: pl.DataFrame
  compression: pl.DataFrame
  hits: pl.DataFrame = pl.DataFrame(schema=SCHEMAS["hits"])


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


def part(out: str, table: str, id: str) -> str:
  """Names the file of a part."""
  return os.path.join(out, "records", table, f"{id}.parquet")


def exists(out: str, table: str, id: str) -> bool:
  """Says whether a part is complete."""
  return os.path.exists(part(out, table, id))


@contextlib.contextmanager
def atomic(path: str) -> Iterator[str]:
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
    table: a key of `SCHEMAS`.
    id: content hash of everything the rows depend on.
    frame: rows with exactly the columns of `SCHEMAS[table]`, in any order.

  Raises:
    ValueError: a column is missing or unknown.
  """
  path, buffer = part(out, table, id), io.BytesIO()
  typed(table, frame).write_parquet(buffer)
  name = f"{table}/{id}"
  content = checksums.marked(buffer.getvalue(), name, SCHEMA_VERSION)
  with atomic(path) as temporary, open(temporary, "wb") as file:
    file.write(content)
  return path


def typed(table: str, frame: pl.DataFrame) -> pl.DataFrame:
  """Gives rows the order and the types of a table's columns.

  Raises:
    ValueError: a column is missing or unknown.
  """
  schema = SCHEMAS[table]
  wrong = set(schema) ^ set(frame.columns)
  if wrong:
    raise ValueError(f"table {table}: columns {sorted(wrong)} do not match")
  return frame.select(pl.col(c).cast(t) for c, t in schema.items())


def read_table(out: str, table: str) -> pl.DataFrame:
  """Reads a table: all parts, sorted by key, one row per key.

  Parts hold each network's rows together, so networks are put in order, not
  rows: twenty million epochs cost one copy of one column at a time.

  Raises:
    ConfigError: a part is damaged, or was written by another version.
  """
  schema = SCHEMAS[table]
  frames = [pl.DataFrame(schema=schema), *_frames(out, table)]
  whole = pl.concat(frames, rechunk=False)
  del frames
  order = _order(whole, KEYS[table]) if len(whole) else None
  if order is None:
    return whole.rechunk()
  return pl.DataFrame(
    # Taking a column out of `whole` frees it as soon as it is copied.
    whole.drop_in_place(name).gather(order)
    for name in schema
  )


_TOGETHER = 2**24  # bytes read by one call of polars, which takes a millisecond


def _frames(out: str, table: str) -> Iterator[pl.DataFrame]:
  """Reads the parts of a table, many at a time."""
  paths = _paths(out, table)
  sizes = itertools.accumulate(map(os.path.getsize, paths))
  numbers = (size // _TOGETHER for size in sizes)
  for _, group in itertools.groupby(
    zip(numbers, paths, strict=True), key=operator.itemgetter(0)
  ):
    own = [path for _, path in group]
    try:
      rows = pl.read_parquet([_content(table, path) for path in own])
    except pl.exceptions.PolarsError:  # not all have the same columns
      rows = pl.DataFrame()
    if rows.schema == pl.Schema(SCHEMAS[table]):
      yield rows
    else:
      yield from (_read_part(table, path) for path in own)


def _content(table: str, path: str) -> bytes:
  return checksums.read(path, f"{table}/{_id(path)}", SCHEMA_VERSION)


def _read_part(table: str, path: str) -> pl.DataFrame:
  """Reads a part; ConfigError where it is damaged or has other columns."""
  rows, schema = pl.read_parquet(_content(table, path)), SCHEMAS[table]
  if rows.schema != pl.Schema(schema):
    wrong = sorted(set(rows.columns) ^ set(schema)) or ["types or order"]
    raise ConfigError(
      f"{path} was written by another version (it differs in "
      f"{', '.join(wrong)}); read it with that version, or choose another --out"
    )
  return rows


def _order(whole: pl.DataFrame, keys: Sequence[str]) -> pl.Series | None:
  """The rows of a sorted table with one row per key; None = all as they are."""
  starts = _networks(whole, keys[len(NETWORK) :])
  if starts is not None:
    ends = np.append(starts[1:], len(whole))
    heads = whole.select(NETWORK)[starts].with_columns(_start=starts, _end=ends)
    ordered = heads.sort(NETWORK, maintain_order=True)
    if (ordered["_start"] == heads["_start"]).all():
      return None
    if not ordered.select(NETWORK).is_duplicated().any():
      return _joined(ordered["_start"].to_numpy(), ordered["_end"].to_numpy())
  rows = whole.select(keys).with_row_index("_row")
  return rows.unique(keys, keep="first", maintain_order=True).sort(keys)["_row"]


def _networks(whole: pl.DataFrame, rest: Sequence[str]) -> np.ndarray | None:
  """The first row of every network; None where the rows of one do not stand
  together in the order of the one column that tells them apart."""
  if len(rest) > 1:
    return None
  new = pl.any_horizontal(  # is it of another network than the row before?
    pl.col(name).ne_missing(pl.col(name).shift()) for name in NETWORK
  )
  later = [pl.col(name) > pl.col(name).shift() for name in rest]
  found = whole.select(
    new=new, fits=pl.any_horizontal(new, *later).fill_null(True)
  )
  return np.flatnonzero(found["new"]) if found["fits"].all() else None


def _joined(starts: np.ndarray, ends: np.ndarray) -> pl.Series:
  """Concatenates the ranges [start, end) in order, as UInt32 row numbers."""
  lengths = ends - starts
  before = np.cumsum(lengths) - lengths
  index = np.arange(lengths.sum(), dtype=np.int64)
  index += np.repeat(starts - before, lengths)
  return pl.Series(index.astype(np.uint32))


def _paths(out: str, table: str) -> list[str]:
  return sorted(
    glob.glob(os.path.join(glob.escape(out), "records", table, "*.parquet"))
  )


def _id(path: str) -> str:
  return os.path.basename(path).removesuffix(".parquet")


def parts(out: str, table: str) -> list[tuple[str, pl.DataFrame]]:
  """Reads the parts of a table as (id, rows in the order written).

  Raises:
    ConfigError: a part is damaged, or was written by another version.
  """
  return [(_id(path), _read_part(table, path)) for path in _paths(out, table)]


def read_part(out: str, table: str, id: str) -> pl.DataFrame:
  """Reads one part of a table, rows in the order written.

  Raises:
    ConfigError: it is damaged, or was written by another version.
  """
  return _read_part(table, part(out, table, id))


def ids(out: str, table: str) -> list[str]:
  """Lists the parts of a table, unread."""
  return list(map(_id, _paths(out, table)))


def damaged(out: str) -> list[tuple[str, str]]:
  """Finds parts that cannot be used: (table, id) of each."""
  found = []
  for table in SCHEMAS:
    for path in _paths(out, table):
      try:
        _read_part(table, path)
      except ConfigError:
        found.append((table, _id(path)))
  return found


def of_run(records: Records, run_id: str) -> Records:
  """Keeps the rows of one training recipe on one data set."""
  return Records(*(t.filter(pl.col("run_id") == run_id) for t in records))


def read(out: str) -> Records:
  """Reads the tables of a results directory.

  Rows of recipes by which no network is there are left out: a part may lie
  there that belongs to another directory.

  Raises:
    FileNotFoundError: there are no records at `out`.
  """
  if not os.path.isdir(os.path.join(out, "records")):
    raise FileNotFoundError(
      f"no records in {out!r}; run `python -m experiments.study --out={out}`"
    )
  found = Records(*(read_table(out, table) for table in Records._fields))
  known = found.networks["run_id"].unique()
  return Records(*(_of_recipes(table, known) for table in found))


def _of_recipes(table: pl.DataFrame, known: pl.Series) -> pl.DataFrame:
  own = table["run_id"].is_in(known.implode())
  return table if own.all() else table.filter(own)


def write_json(path: str, value: Mapping[str, Any]) -> None:
  """Writes a JSON file atomically, keys in the given order, sealed."""
  sealed = {**value, _SEAL: _sealing(value)}
  with atomic(path) as temporary, open(temporary, "w") as file:
    json.dump(sealed, file, indent=2, default=list)
    file.write("\n")


_SEAL = "sha256"  # of everything else in a JSON file; those of 0.1 have none


def _sealing(value: Mapping[str, Any]) -> str:
  text = json.dumps(json.loads(json.dumps(value, default=list)), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def read_json(path: str) -> dict[str, Any]:
  """Reads a JSON object; {} when there is no such file.

  Raises:
    ConfigError: the file holds something else, or not what was written.
  """
  if not os.path.exists(path):
    return {}
  try:
    with open(path, encoding="utf-8") as file:
      value = json.load(file)
  except ValueError as error:
    raise checksums.damaged(path, f"it is no JSON ({error})") from None
  if not isinstance(value, dict):
    raise checksums.damaged(path, "it holds no JSON object")
  seal = value.pop(_SEAL, None)
  if seal is not None and seal != _sealing(value):
    raise checksums.damaged(path, "it does not hold what was written")
  return value
