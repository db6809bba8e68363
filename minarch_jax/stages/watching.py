"""Feeds loggers from the records: each part once, as soon as it is there."""

from collections.abc import Iterator, Sequence
import os
from typing import Any

import polars as pl

from minarch_jax import records, registries
from minarch_jax.config import ConfigError
from minarch_jax.executors import leases
from minarch_jax.stages.loggers import Run

FOLDER = "logs"


def follow(out: str, names: Sequence[str]) -> None:
  """Tells loggers what the records hold and they have not been told.

  What a logger was told stands in <out>/logs/NAME/told, so that a study that
  goes on, or a logger that is added later, neither repeats nor misses any.

  Args:
    out: the results directory.
    names: of `registries.LOGGERS`.

  Raises:
    ConfigError: a logger failed; the records are complete.
  """
  if not names:
    return
  with leases.alone(out, FOLDER):  # packs end side by side, loggers take turns
    for name in names:
      folder = os.path.join(out, FOLDER, name)
      log = registries.LOGGERS[name]
      for table, id in _new(out, folder):
        try:
          for run in runs_of(out, table, id):
            log(folder, run)
        except Exception as error:  # of a library that is not ours
          raise ConfigError(
            f"--log={name} failed ({error}); the records are complete: go on "
            "without it"
          ) from error
        with records.atomic(_told(folder, table, id)) as temporary:
          open(temporary, "w").close()


def _new(out: str, folder: str) -> Iterator[tuple[str, str]]:
  """The parts that are not told yet; `networks` says that curves are done."""
  for table, done in ("curves", "networks"), ("compression", "compression"):
    for id in records.ids(out, done):
      if not os.path.exists(_told(folder, table, id)):
        yield table, id


def _told(folder: str, table: str, id: str) -> str:
  return os.path.join(folder, "told", table, id)


def runs_of(out: str, table: str, id: str) -> Iterator[Run]:
  """Makes a run of every network of a part."""
  make = {"curves": _curves, "compression": _compressed}[table]
  frame = make(records.read_part(out, table, id))
  study = os.path.basename(os.path.abspath(out))
  for (run_id, dataset, architecture, seed), rows in frame.partition_by(
    records.NETWORK, as_dict=True, include_key=False, maintain_order=True
  ).items():
    who = (run_id, dataset, architecture, seed)
    config: dict[str, Any] = dict(zip(records.NETWORK, who, strict=True))
    name = f"{dataset}/{architecture}/seed{seed}-{run_id[:6]}"
    points = [
      (step, {tag: value for tag, value in zip(tags, values, strict=True)})
      for step, tags, values in rows.iter_rows()
    ]
    axis = {"curves": "epoch", "compression": "percent_removed"}[table]
    yield Run(study, name.replace(":", "-"), table, axis, config, points)


def _curves(frame: pl.DataFrame) -> pl.DataFrame:
  """Steps, names and values: losses and accuracies of every epoch."""
  names = ["train_loss", "train_accuracy", "val_loss", "val_accuracy"]
  return _gathered(
    frame.rename({"epoch": "at"})
    .unpivot(names, index=[*records.NETWORK, "at"], variable_name="tag")
    .with_columns(pl.col("tag").str.replace("_", "/"))
  )


def _compressed(frame: pl.DataFrame) -> pl.DataFrame:
  """The accuracy of every setting, along the percentage of weights removed."""
  setting = ["schedule", "control", "criterion", "scope", "granularity"]
  setting += ["bits", "activation_bits", "quantizer", "quant_granularity"]
  return _gathered(
    frame.with_columns(
      at=(100 * pl.col("sparsity")).round(0).cast(pl.Int64),
      tag=pl.concat_str(pl.lit("compression"), *setting, separator="/"),
      value=pl.col("val_accuracy"),
    )
  )


def _gathered(frame: pl.DataFrame) -> pl.DataFrame:
  """One row for every network and step; what is not finite is left out."""
  return (
    frame.filter(pl.col("value").is_finite())
    .group_by(*records.NETWORK, "at", maintain_order=True)
    .agg("tag", "value")
    .sort(*records.NETWORK, "at", maintain_order=True)
  )
