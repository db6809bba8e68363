"""Records and results directories of reports, and a reader of pages."""

import html.parser
import os

import polars as pl
import polars.testing

from minarch_jax import config as config_lib
from minarch_jax import records as records_lib
from minarch_jax import registries
from minarch_jax.report import (
  cells,
)
from tests.analysis import simulated

CONFIG = config_lib.Config(num_bootstrap=200)


NOTE = "easy has no official test split: <20 %> of its images"


STUDY = {
  "config": {"dataset": "easy", "num_seeds": 3},
  "versions": {"jax": "0.12"},
  "devices": ["cpu:0", "cpu:1"],
  "git_revision": "0123abc",
  "datasets": {"easy": {"test_note": NOTE, "test": 10000}},
  "packs": [
    {"stage": "train", "members": 6, "compile_seconds": 1.5, "names": ["a"]},
    {"stage": "train", "members": 5, "compile_seconds": 0.5, "names": ["b"]},
    {"stage": "prune", "members": 6, "compile_seconds": 2.0, "names": []},
  ],
}


def small(**changes) -> records_lib.Records:
  world = {
    "datasets": ("easy",),
    "num_architectures": 6,
    "num_seeds": 3,
    "num_epochs": 8,
    "sparsities": (0.0, 0.5, 0.9),
  }
  return simulated.simulate(**(world | changes))


def layered(records: records_lib.Records) -> dict[str, pl.DataFrame]:
  """What `experiments.sensitivity` would leave of the largest networks."""
  networks = (
    records.networks.sort(*records_lib.NETWORK)
    .sort("params", maintain_order=True)
    .group_by("family", maintain_order=True)
    .tail(6)
  )
  described = networks.select(list(records_lib.SCHEMAS["networks"])[:7])
  names = ("hidden_0/kernel", "output/kernel", records_lib.ALL_LAYERS)
  layers = pl.DataFrame(
    {"layer": names, "number": range(3), "groups": [30, 10, 40]}
  )
  cells = (
    described.with_columns(
      criterion=pl.lit("magnitude"), granularity=pl.lit("element")
    )
    .join(layers, how="cross")
    .join(pl.DataFrame({"sparsity": [0.0, 0.5, 0.9]}), how="cross")
  )
  density = 1 - pl.col("sparsity")
  seeds = described.select("architecture", other="seed")
  return {
    "sensitivity": cells.filter(
      pl.col("layer") != records_lib.ALL_LAYERS
    ).with_columns(
      val_accuracy=0.95 - pl.col("sparsity") ** 4 / (2 + pl.col("number"))
    ),
    "overlap": cells.join(seeds, on="architecture", maintain_order="left_right")
    .filter(pl.col("seed") < pl.col("other"))
    .with_columns(
      overlap=density / (2 - density) + 0.01 * pl.col("other"),
      chance=density / (2 - density),
      shuffled=density / (2 - density) + 0.01,
    ),
  }


def save(out, records: records_lib.Records, study=None, more=None) -> str:
  for name, table in (records._asdict() | (more or {})).items():
    if len(table):
      records_lib.write(str(out), name, "part", table)
  os.makedirs(os.path.join(out, "records"), exist_ok=True)
  if study:
    records_lib.write_json(os.path.join(out, "study.json"), study)
  return str(out)


class Reader(html.parser.HTMLParser):
  """Collects what a page refers to, what it names and whether tags close."""

  def __init__(self, text: str):
    super().__init__()
    self.ids, self.links, self.loads, self.open = [], [], [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    values = dict(attrs)
    self.ids += [values["id"]] if "id" in values else []
    self.links += [values["href"]] if "href" in values else []
    self.loads += [values[key] for key in ("src", "srcset") if key in values]
    if tag not in ("meta", "br", "link", "img"):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


def without_curves(records):
  return records._replace(curves=records.curves.clear())


def without_compression(records):
  return records._replace(compression=records.compression.clear())


def shown(found, name):
  table = registries.TABLES[name]
  return cells.shown(name, table, found.tables[name])


def complete() -> records_lib.Records:
  """Records in which every analysis finds something, on two data sets."""
  found = small(datasets=("easy", "hard"), plateaus=(0.97, 0.85), num_seeds=4)
  rows = found.compression
  dense = rows.filter(quant_granularity="channel", sparsity=0.0, bits=4)
  return found._replace(
    compression=pl.concat(
      [
        rows,
        dense.with_columns(quantizer=pl.lit("nf4")),
        dense.with_columns(activation_bits=pl.lit(8, pl.Int64)),
        rows.filter(bits=32, schedule="finetune").with_columns(
          control=pl.lit("small_dense"), val_accuracy=pl.lit(0.5)
        ),
      ]
    )
  )


PACK = {
  **{"stage": "train", "dataset": "easy", "parent": "dnn:8"},
  **{"members": 6, "seeds": 3},
  **{"padding": 1.5, "compile_seconds": 1.5, "run_seconds": 2.5},
  "forecast_seconds": 2.0,
}
