"""What the page holds of networks, and how much of them it can hold."""

import dataclasses
import json

import polars as pl

from minarch_jax.analysis import tables
from minarch_jax.report import networks, reading
from tests.report import studies

KEYS = ["dataset", "architecture"]


def _again(found, **changes):
  """The same records, read as if for the first time."""
  del changes
  return dataclasses.replace(found)


def test_every_network_is_there_with_every_seed(found):
  data = networks.data(found)
  records = found.records
  assert len(data["networks"]) == len(records.networks.unique(KEYS))
  for network in data["networks"].values():
    own = {"dataset": network["dataset"]}
    own["architecture"] = network["architecture"]
    seeds = records.networks.filter(**own).sort("seed")
    assert [seed[0] for seed in network["seeds"]] == seeds["seed"].to_list()
    for (_, _, val, test, _), row in zip(
      network["seeds"], seeds.iter_rows(named=True), strict=True
    ):
      assert abs(val - row["val_accuracy"]) < 1e-5
      assert abs(test - row["test_accuracy"]) < 1e-5
    curves = records.curves.filter(**own)
    for name, *columns in network["curves"]:
      seed = curves.filter(seed=int(name.removeprefix("seed ")))
      assert len(columns[1]) == len(data["epochs"]) == len(seed)
      last = seed.sort("epoch")["val_accuracy"][-1]
      assert abs(columns[1][-1] - last) < 1e-5


def test_compression_is_the_mean_over_seeds(found):
  data = networks.data(found)
  rows = tables.under(found.records.compression)
  (key, network), *_ = data["networks"].items()
  dataset, architecture = key.split()
  own = rows.filter(dataset=dataset, architecture=architecture)
  settings = ["schedule", "criterion", "scope", "sparsity", "bits"]
  settings += ["quantizer", "quant_granularity", "granularity"]
  means = own.group_by(settings).agg(pl.mean("val_accuracy", "bytes"))
  assert len(network["compressed"]) == len(means)
  (dense,) = means.filter(
    sparsity=0.0,
    bits=32,
    schedule="oneshot",
    criterion="magnitude",
    scope="global",
  ).iter_rows(named=True)
  shown = [
    row
    for row in network["compressed"]
    if data["prunings"][row[0]].startswith("oneshot, magnitude, global")
    and row[2:4] == [0, 32]
  ]
  assert len(shown) == 1
  assert abs(shown[0][4] - dense["val_accuracy"]) < 1e-5
  assert shown[0][5] == round(dense["bytes"])


def test_many_networks_are_evenly_spread_the_recommended_among_them(
  found, monkeypatch
):
  monkeypatch.setattr(reading, "MOST_NETWORKS", 6)
  few = _again(found)
  regimes = found.tables["regimes"]
  shown = regimes.join(few.shown, on=KEYS, how="semi")
  assert 6 <= len(shown) < len(regimes)
  for (family,), own in regimes.group_by("family"):
    kept = shown.filter(family=family)["params"]
    assert {own["params"].min(), own["params"].max()} <= set(kept)
  wanted = found.tables["guidance"]["architecture"].drop_nulls()
  assert set(wanted) <= set(few.shown["architecture"])
  assert len(networks.data(few)["networks"]) == len(few.shown)
  drawn = reading.drawn(few.shown, len(regimes))
  assert f"{len(few.shown)} of {len(regimes)} architectures" in drawn


def test_long_curves_are_summed_up(found, monkeypatch):
  seeds = found.records.networks["seed"].n_unique()
  values = len(found.records.curves) * 4
  monkeypatch.setattr(networks, "_MOST_VALUES", values - 1)
  data = networks.data(found)
  for network in data["networks"].values():
    assert [name for name, *_ in network["curves"]] == [
      *("greatest", "least", "median")
    ]
    greatest, least, median = (curve[2] for curve in network["curves"])
    assert all(
      a <= b <= c for a, b, c in zip(least, median, greatest, strict=True)
    )
  assert seeds > 1
  monkeypatch.setattr(networks, "_MOST_VALUES", values // 4)
  few = networks.data(found)["epochs"]
  assert len(few) < len(data["epochs"]) and few[-1] == data["epochs"][-1]


def test_data_can_stand_in_a_page():
  records = studies.small(families=("dnn",), num_architectures=3)
  lost = pl.when(pl.col("epoch") > 2).then(float("inf"))
  records = records._replace(
    curves=records.curves.with_columns(
      val_loss=lost.otherwise(pl.col("val_loss"))
    ),
    networks=records.networks.with_columns(pl.lit("<b>").alias("dataset")),
  )
  found = reading.analyse(records, studies.CONFIG, {})
  text = networks.written(found)
  assert "<" not in text
  assert "<b>" in next(iter(json.loads(text)["networks"]))
