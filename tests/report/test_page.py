"""The page: self-contained, its links resolve, whatever the records."""

import re

import polars as pl
import polars.testing
import pytest

from minarch_jax import config as config_lib
from minarch_jax import records as records_lib
from minarch_jax import registries
from minarch_jax.report import export, page, reading
from tests.report import studies


def test_page_needs_no_other_file_and_its_links_resolve(built):
  text = (built / "index.html").read_text()
  reader = studies.Reader(text)
  assert not reader.open
  assert not reader.loads
  assert len(set(reader.ids)) == len(reader.ids)
  assert not re.search(r"url\((?!#)|@import|<link|<iframe", text)
  namespaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
  assert set(re.findall(r"https?://[^\"'\s<)]+", text)) <= namespaces
  for link in reader.links:
    if link.startswith("#"):
      assert link[1:] in reader.ids, link
    else:
      name, _, anchor = link.partition("#")
      assert (built / name).is_file(), link
      if anchor:
        assert anchor in studies.Reader((built / name).read_text()).ids, link
  for reference in re.findall(r"url\(#([^)]+)\)", text):
    assert reference in reader.ids


def test_page_shows_every_figure_table_threshold_and_origin(built, found):
  text = (built / "index.html").read_text()
  for name in registries.FIGURES:
    assert f'<figure id="figure-{name}">' in text
  for name, table in found.tables.items():
    shown = f'<details id="table-{name}"' in text
    assert shown != table.is_empty(), name
  for name in config_lib.THRESHOLDS:
    assert f'<th scope="row">{name}</th>' in text
  for origin in ("0123abc", "0.12", "cpu:0, cpu:1"):
    assert origin in text


def test_page_says_what_the_test_split_is_beside_every_test_number(built):
  text = (built / "index.html").read_text()
  shown = "Test split of easy: " + studies.NOTE.replace("<", "&lt;").replace(
    ">", "&gt;"
  )
  blocks = re.findall(r"<details.*?</details>", text, re.DOTALL)
  with_test = [b for b in blocks if re.search(r"<th[^>]*>test ", b)]
  assert len(with_test) == 2
  assert all(shown in block for block in with_test)
  answer = text[text.index('id="answer"') : text.index('id="regimes"')]
  assert "accuracy on test images" in answer and shown in answer


def _all_diverged(records):
  wrong = {"val_accuracy": 0.1, "test_accuracy": 0.1}
  lost = [pl.lit(None, pl.Float64).alias(f"{s}_loss") for s in ("train", "val")]
  return records_lib.Records(
    records.networks.with_columns(
      *lost,
      test_loss=pl.lit(None, pl.Float64),
      diverged=pl.lit(True),
      diverged_epoch=pl.lit(1, pl.Int64),
      **{name: pl.lit(value) for name, value in wrong.items()},
    ),
    records.curves.with_columns(
      *lost, train_accuracy=pl.lit(0.1), val_accuracy=pl.lit(0.1)
    ),
    records.compression.with_columns(
      **{name: pl.lit(value) for name, value in wrong.items()}
    ),
  )


def _cells_missing(records):
  """One family on the first data set only, seeds missing here and there."""
  absent = (pl.col("family") == "vit") & (pl.col("dataset") != "easy")
  return records_lib.Records(
    records.networks.filter(~absent).filter(pl.col("seed") != 1),
    records.curves.filter(~pl.col("architecture").str.starts_with("vit")),
    records.compression.filter(pl.col("sparsity") > 0),
  )


def _random_only(records):
  return records._replace(
    compression=records.compression.filter(criterion="random", bits=32)
  )


PARTIAL = {
  "no compression": studies.without_compression(studies.small()),
  "no curves": studies.without_curves(studies.small()),
  "neither": studies.without_curves(
    studies.without_compression(studies.small())
  ),
  "one seed": studies.small(num_seeds=1),
  "one epoch": studies.small(num_epochs=1),
  "one family": studies.small(families=("cnn",)),
  "one architecture": studies.small(families=("dnn",), num_architectures=1),
  "four data sets": studies.small(
    datasets=("a", "b", "c", "d"),
    plateaus=(0.97, 0.95, 0.9, 0.8),
    num_architectures=3,
  ),
  "all diverged": _all_diverged(studies.small()),
  "cells missing": _cells_missing(studies.small(datasets=("easy", "medium"))),
  "random only": _random_only(studies.small()),
  "32 bits only": studies.small(bits=(32,)),
}


@pytest.mark.parametrize("name", PARTIAL)
def test_partial_records_give_a_page(name):
  found = reading.analyse(PARTIAL[name], studies.CONFIG, {})
  drawn = {
    key: figure
    for key, entry in registries.FIGURES.items()
    if (figure := entry.draw(found))
  }
  svgs = {key: export.svg(key, figure) for key, figure in drawn.items()}
  assert {"accuracy", "claims"} <= set(svgs)
  assert all(
    "NaN" not in svg and "Infinity" not in svg for svg in svgs.values()
  )
  text = page.render(found, drawn, svgs)
  reader = studies.Reader(text)
  assert not reader.open
  inside = {link[1:] for link in reader.links if link.startswith("#")}
  assert inside <= set(reader.ids)
  assert "None" not in re.sub(r"<[^>]*>", "", text)


def test_section_texts_number_the_figures_that_are_there(found):
  drawn = {"accuracy": registries.FIGURES["accuracy"].draw(found)}
  with_it = page.contents(found, drawn, {"accuracy": ""})["minimal"]["text"]
  assert "Figure 1 draws P_min" in with_it
  without = page.contents(found, {}, {})["minimal"]["text"]
  assert "A figure draws P_min" in without
