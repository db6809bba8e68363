"""What the page holds of every network that a reader can open."""

from collections.abc import Sequence
import json
from typing import Any

import polars as pl

from minarch_jax import analysis
from minarch_jax.report.reading import Reading

_KEYS = ("dataset", "architecture")
_TOLD = (*_KEYS, "family", "depth", "params", "macs", "steps", "label")
_PRUNING = ("schedule", "criterion", "scope", "granularity")
_ROUNDING = ("quantizer", "quant_granularity", "activation_bits")
_CURVES = ("train_accuracy", "val_accuracy", "train_loss", "val_loss")
_MOST_VALUES = 200_000  # of all curves together: about a megabyte


def data(reading: Reading) -> dict[str, Any]:
  """Collects, for the script of the page, what it shows of one network.

  Returns:
    prunings, roundings: the names of what rows number; epochs: of every curve;
    networks: by data set and name, each with
      the columns `_TOLD`,
      seeds: [seed, training, validation, test accuracy, diverged],
      curves: [name, one list of values for each of `_CURVES`], a curve per
        seed or, where those are too many, the least, median and greatest,
      compressed: [pruning, rounding, sparsity, bits, accuracy, bytes], means
        over seeds on validation images.
  """
  epochs, curves = _curves(reading)
  prunings, roundings, compressed = _compressed(reading)
  seeds = _lists(
    _of_shown(reading, reading.records.networks).sort("seed"),
    ("seed", "train_accuracy", "val_accuracy", "test_accuracy", "diverged"),
  )
  macs = reading.records.networks.group_by(_KEYS).agg(pl.first("macs"))
  rows = _of_shown(reading, reading.tables["regimes"]).join(
    macs, on=_KEYS, how="left", maintain_order="left"
  )
  return {
    "prunings": prunings,
    "roundings": roundings,
    "epochs": epochs,
    "networks": {
      key: {
        **{name: row[name] for name in _TOLD},
        "seeds": seeds.get(key, []),
        "curves": curves.get(key, []),
        "compressed": compressed.get(key, []),
      }
      for row in rows.iter_rows(named=True)
      if (key := f"{row['dataset']} {row['architecture']}")
    },
  }


def written(reading: Reading) -> str:
  """Writes `data` as JSON that can stand inside a page."""
  text = json.dumps(data(reading), separators=(",", ":"), allow_nan=False)
  return text.replace("<", "\\u003c")


def _of_shown(reading: Reading, frame: pl.DataFrame) -> pl.DataFrame:
  return frame.join(reading.shown, on=_KEYS, how="semi", maintain_order="left")


def _lists(
  frame: pl.DataFrame, columns: Sequence[str]
) -> dict[str, list[list[Any]]]:
  """The values of the rows of every network; what is not finite is null."""
  numbers = pl.selectors.float()
  frame = frame.with_columns(
    pl.when(numbers.is_finite()).then(numbers.round_sig_figs(5))
  )
  return {
    f"{dataset} {architecture}": [list(row) for row in rows.iter_rows()]
    for (dataset, architecture), rows in frame.select(*_KEYS, *columns)
    .partition_by(*_KEYS, include_key=False, as_dict=True, maintain_order=True)
    .items()
  }


def _curves(
  reading: Reading,
) -> tuple[list[int], dict[str, list[list[Any]]]]:
  frame = _of_shown(reading, reading.records.curves)
  if frame.is_empty():
    return [], {}
  frame = frame.with_columns(name=pl.format("seed {}", "seed"))
  if len(frame) * len(_CURVES) > _MOST_VALUES:
    frame = _summed_up(frame)
  epochs = sorted(set(frame["epoch"]))
  # No epoch is left out of a short training, the last of none.
  most = max(_MOST_VALUES * len(epochs) // (len(frame) * len(_CURVES)), 2)
  step = -(-len(epochs) // most)
  epochs = epochs[::-1][::step][::-1]
  every = frame.select(*_KEYS, "name").unique(maintain_order=True)
  frame = (
    every.join(pl.DataFrame({"epoch": epochs}), how="cross")
    .join(frame, on=[*_KEYS, "name", "epoch"], how="left")
    .sort(*_KEYS, "name", "epoch")
    .with_columns(
      pl.when(pl.col(_CURVES).is_finite()).then(
        pl.col(_CURVES).round_sig_figs(5)
      )
    )
    .group_by(*_KEYS, "name", maintain_order=True)
    .agg(_CURVES)
  )
  return epochs, _lists(frame, ("name", *_CURVES))


def _summed_up(curves: pl.DataFrame) -> pl.DataFrame:
  groups = curves.group_by(*_KEYS, "epoch")
  return pl.concat(
    [
      groups.agg(getattr(pl.col(_CURVES), how)()).with_columns(
        name=pl.lit(name)
      )
      for how, name in (("min", "least"), ("median", "median"))
      + (("max", "greatest"),)
    ]
  )


def _compressed(
  reading: Reading,
) -> tuple[list[str], list[str], dict[str, list[list[Any]]]]:
  frame = _of_shown(reading, analysis.under(reading.records.compression))
  settings = [*_PRUNING, *_ROUNDING, "sparsity", "bits"]
  frame = (
    frame.group_by(*_KEYS, *settings)
    .agg(pl.mean("val_accuracy"), pl.mean("bytes").round(0).cast(pl.Int64))
    .sort(*_KEYS, *settings)
    .with_columns(
      pruning=pl.concat_str(_telling(frame, _PRUNING), separator=", "),
      rounding=pl.format(
        "{} per {}, activations {} bits", *_ROUNDING
      ).str.replace(", activations 32 bits", "", literal=True),
    )
  )
  prunings, roundings = (
    frame[name].unique(maintain_order=True).to_list()
    for name in ("pruning", "rounding")
  )
  numbered = frame.with_columns(
    pl.col(column).replace_strict(
      {name: i for i, name in enumerate(known)}, return_dtype=pl.Int64
    )
    for column, known in (("pruning", prunings), ("rounding", roundings))
  )
  columns = ("pruning", "rounding", "sparsity", "bits")
  rows = _lists(numbered, (*columns, "val_accuracy", "bytes"))
  return prunings, roundings, rows


def _telling(frame: pl.DataFrame, columns: Sequence[str]) -> list[str]:
  """The first column, and those of the others that differ between rows."""
  return [
    name for name in columns if name == columns[0] or frame[name].n_unique() > 1
  ]
