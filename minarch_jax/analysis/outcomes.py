"""What became of each trained network: diverged, stuck, overfitting."""

import numpy as np
import polars as pl

from minarch_jax.analysis import hits as hits_lib
from minarch_jax.analysis import statistics, tables
from minarch_jax.config import Config


def outcomes(records: tables.Records, config: Config) -> pl.DataFrame:
  """Judges every network (report/method.md#failed-seeds, #regimes).

  Returns:
    The rows of `networks` with
      stuck: finite loss, but accuracy not above chance,
      failed: diverged or stuck,
      rise: relative rise of the validation loss from its minimum to the end
        (null without a curve),
      falls: training loss is lower at the end than at that minimum,
      overfits: rise above `overfit_rise` while falling (null as `rise`),
      row: where its hits stand (-1 = they are not known),
      image_noise: variance of accuracy over seeds of this architecture that
        images alone give, as far as seeds have images of their own or hits
        tell it,
      image_missing: variance that images add to the architecture's mean beyond
        what shows in the variance over seeds (0 where hits are not known).
  """
  rises = loss_rises(records.curves)
  joined = records.networks.join(
    rises, on=tables.NETWORK, how="left", maintain_order="left"
  )
  return _with_noise(judged(joined, config), hits_lib.Hits.of(records.hits))


def _with_noise(rows: pl.DataFrame, hits: hits_lib.Hits) -> pl.DataFrame:
  by = tables.ARCHITECTURE
  rows = rows.with_columns(row=pl.Series(hits.rows(rows), dtype=pl.Int64))
  pivot = tables.Pivot(rows, by)
  groups, accuracy = pivot.groups, pivot.means("val_accuracy")
  row, fold = map(pivot.numbers, ("row", "fold"))
  images = tables.images_of(groups, rows)
  found = hits.images_of(accuracy, row, None, images, fold)
  n, mean, _ = statistics.moments(accuracy)
  apart = hits_lib.apart(np.where(np.isnan(accuracy), -1, fold))
  known = (np.isnan(accuracy) | (row >= 0)).all(-1)
  by_number = statistics.image_variance(mean, images) * apart
  missing = np.maximum(found.drawn - found.noise / n, 0)
  noise = groups.with_columns(
    image_noise=pl.Series(np.where(known, found.noise, by_number)),
    image_missing=pl.Series(np.where(known, missing, 0.0)),
  )
  return rows.join(noise, on=list(by), how="left", maintain_order="left")


def known_outcomes(
  records: tables.Records, config: Config, known: pl.DataFrame | None
) -> pl.DataFrame:
  """Returns the outcomes that a caller has, or judges every network."""
  if known is not None:
    return known
  return outcomes(tables.one_recipe(records)[0], config)


def with_chance(networks: pl.DataFrame, config: Config) -> pl.DataFrame:
  """Adds (or replaces) chance, 1 / C, and floor, the least accuracy above it.

  Folds of one data set may differ by an image, and then in their floors.
  """
  by = ["dataset", "num_classes", "num_validation"]
  sets = networks.select(by).unique()
  floors = [
    max(
      statistics.chance_hits(images, classes, config.chance_level) / images,
      1 / classes + config.chance_margin,
    )
    for _, classes, images in sets.iter_rows()
  ]
  sets = sets.with_columns(
    chance=1 / pl.col("num_classes"), floor=pl.Series(floors, dtype=pl.Float64)
  )
  return networks.drop("chance", "floor", strict=False).join(
    sets, on=by, how="left", maintain_order="left"
  )


def judged(rows: pl.DataFrame, config: Config) -> pl.DataFrame:
  """Adds (or replaces) chance, floor, stuck, failed and overfits."""
  at_chance = pl.col("val_accuracy") < pl.col("floor") - tables.TIE
  return with_chance(rows, config).with_columns(
    stuck=~pl.col("diverged") & at_chance,
    failed=pl.col("diverged") | at_chance,
    overfits=(pl.col("rise") > config.overfit_rise) & pl.col("falls"),
  )


def judged_without_curves(
  networks: pl.DataFrame, config: Config
) -> pl.DataFrame:
  """Judges networks by their final rows alone: neither overfitting nor the
  images of hits are known."""
  unknown = networks.with_columns(
    rise=pl.lit(None, pl.Float64), falls=pl.lit(None, pl.Boolean)
  )
  return _with_noise(judged(unknown, config), hits_lib.NONE)


def loss_rises(curves: pl.DataFrame) -> pl.DataFrame:
  """Per network: relative rise of validation loss, and whether training loss
  still fell meanwhile. Networks without a finite loss are left out.

  The lowest of many noisy losses is too low: the epoch of the minimum is chosen
  on one half of the validation images and the rise measured on the other, and
  the other way round; the rise is the mean of both.
  """
  parts = [_empty_rises(curves)]
  halves = ("val_loss_even", "val_loss_odd")
  for keys, curve in tables.curve_matrices(curves, ("train_loss", *halves)):
    train, *losses = curve.values()
    ends = np.stack([each[:, -1] for each in curve.values()])
    finite = np.asarray(~np.isnan(ends).any(axis=0))
    if not finite.any():
      continue
    train, *losses = (each[finite] for each in (train, *losses))
    rises, falls = [], []
    for chooses, measures in (losses, losses[::-1]):
      at = np.nanargmin(chooses, axis=1)[:, None]
      lowest = np.take_along_axis(measures, at, 1)[:, 0]
      rises.append(measures[:, -1] / np.maximum(lowest, 1e-300) - 1)
      falls.append(train[:, -1] < np.take_along_axis(train, at, 1)[:, 0])
    parts.append(
      keys.filter(finite).with_columns(
        rise=np.mean(rises, axis=0), falls=np.all(falls, axis=0)
      )
    )
  return pl.concat(parts)


def _empty_rises(curves: pl.DataFrame) -> pl.DataFrame:
  return (
    curves.clear()
    .select(tables.NETWORK)
    .with_columns(rise=pl.lit(None, pl.Float64), falls=pl.lit(None, pl.Boolean))
  )
