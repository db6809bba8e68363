"""The report: complete, self-contained, deterministic, whatever the records."""

import csv
import html.parser
import itertools
import os
import pathlib
import re
import subprocess
import sys

import polars as pl
import polars.testing
import pytest
from scipy import stats

from minarch_jax import config as config_lib
from minarch_jax import records as records_lib
from minarch_jax import report
from minarch_jax.report import export, figures, page, reading, tables, theme
from minarch_jax.report import sensitivity as layers
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
  networks = records.networks.sort("params").group_by("family").tail(6)
  who = networks.select(list(records_lib.SCHEMAS["networks"])[:7])
  names = ("hidden_0/kernel", "output/kernel", records_lib.ALL_LAYERS)
  layers = pl.DataFrame(
    {"layer": names, "number": range(3), "groups": [30, 10, 40]}
  )
  cells = (
    who.with_columns(
      criterion=pl.lit("magnitude"), granularity=pl.lit("element")
    )
    .join(layers, how="cross")
    .join(pl.DataFrame({"sparsity": [0.0, 0.5, 0.9]}), how="cross")
  )
  density = 1 - pl.col("sparsity")
  seeds = who.select("architecture", other="seed")
  return {
    "sensitivity": cells.filter(
      pl.col("layer") != records_lib.ALL_LAYERS
    ).with_columns(
      val_accuracy=0.95 - pl.col("sparsity") ** 4 / (2 + pl.col("number"))
    ),
    "overlap": cells.join(seeds, on="architecture")
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


@pytest.fixture(scope="module")
def found() -> reading.Reading:
  return reading.analyse(small(), CONFIG, STUDY, layered(small()))


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp("built")
  out = save(folder, small(), STUDY, layered(small()))
  return pathlib.Path(report.build(out, CONFIG)).parent


class _Reader(html.parser.HTMLParser):
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


def test_all_files_exist_and_nothing_else(built):
  expected = {"index.html"}
  expected |= {
    f"figures/{name}.{format}"
    for name, format in itertools.product(figures.FIGURES, export.FORMATS)
  }
  expected |= {
    f"tables/{name}.csv"
    for name in (
      *("regimes", "regime_counts", "regime_boundaries", "selected"),
      *("minimal_parameters", "convergence_phases", "pruning_phases"),
      *("redundancy", "quantization", "quantization_slopes", "claims"),
      *("controls", "guidance", "packs", "stages", "sensitivity", "overlap"),
      "activation_quantization",
    )
  }
  files = {
    str(path.relative_to(built)) for path in built.rglob("*") if path.is_file()
  }
  assert files == expected


def test_page_needs_no_other_file_and_its_links_resolve(built):
  text = (built / "index.html").read_text()
  reader = _Reader(text)
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
      assert (built / link).is_file(), link
  for reference in re.findall(r"url\(#([^)]+)\)", text):
    assert reference in reader.ids


def test_page_shows_every_figure_table_threshold_and_origin(built, found):
  text = (built / "index.html").read_text()
  for name in figures.FIGURES:
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
  shown = "Test split of easy: " + NOTE.replace("<", "&lt;").replace(
    ">", "&gt;"
  )
  blocks = re.findall(r"<details.*?</details>", text, re.DOTALL)
  with_test = [b for b in blocks if re.search(r"<th[^>]*>test ", b)]
  assert len(with_test) == 2
  assert all(shown in block for block in with_test)
  answer = text[text.index('id="answer"') : text.index('id="regimes"')]
  assert "test accuracy" in answer and shown in answer


def test_same_records_give_the_same_bytes_without_jax(built, tmp_path):
  """Also through the command, in another process."""
  out = save(tmp_path, small(), STUDY, layered(small()))
  program = (
    "import sys, runpy\n"
    "try: runpy.run_module('experiments.report', run_name='__main__')\n"
    "except SystemExit as end: assert not end.code, end.code\n"
    "heavy = {'jax', 'flax', 'tensorflow'} & set(sys.modules)\n"
    "assert not heavy, heavy"
  )
  done = subprocess.run(
    [sys.executable, "-c", program, f"--out={out}", "--num_bootstrap=200"],
    capture_output=True,
    text=True,
    cwd=pathlib.Path(__file__).parents[2],
  )
  assert done.returncode == 0, done.stderr
  assert "P_min" in done.stdout and "index.html" in done.stdout
  for path in built.rglob("*"):
    if path.is_file():
      other = tmp_path / "report" / path.relative_to(built)
      assert other.read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda out: None, "no records in"),
    (lambda out: os.makedirs(out / "records"), "no trained network"),
  ],
)
def test_command_without_records_says_so_in_one_line(tmp_path, make, message):
  make(tmp_path)
  done = subprocess.run(
    [sys.executable, "-m", "experiments.report", f"--out={tmp_path}"],
    capture_output=True,
    text=True,
    cwd=pathlib.Path(__file__).parents[2],
  )
  assert done.returncode == 1
  assert message in done.stderr and str(tmp_path) in done.stderr
  assert done.stderr.count("\n") == 1
  assert not (tmp_path / "report").exists()


def test_empty_and_missing_records_raise(tmp_path):
  with pytest.raises(FileNotFoundError, match="no records in"):
    report.build(str(tmp_path / "none"))
  out = save(tmp_path, small(num_seeds=1).__class__(*[pl.DataFrame()] * 3))
  with pytest.raises(config_lib.ConfigError, match="no trained network"):
    report.build(out)


def _without_curves(records):
  return records._replace(curves=records.curves.clear())


def _without_compression(records):
  return records._replace(compression=records.compression.clear())


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
  "no compression": _without_compression(small()),
  "no curves": _without_curves(small()),
  "neither": _without_curves(_without_compression(small())),
  "one seed": small(num_seeds=1),
  "one epoch": small(num_epochs=1),
  "one family": small(families=("cnn",)),
  "one architecture": small(families=("dnn",), num_architectures=1),
  "four data sets": small(
    datasets=("a", "b", "c", "d"),
    plateaus=(0.97, 0.95, 0.9, 0.8),
    num_architectures=3,
  ),
  "all diverged": _all_diverged(small()),
  "cells missing": _cells_missing(small(datasets=("easy", "medium"))),
  "random only": _random_only(small()),
  "32 bits only": small(bits=(32,)),
}


@pytest.mark.parametrize("name", PARTIAL)
def test_partial_records_give_a_page(name):
  found = reading.analyse(PARTIAL[name], CONFIG, {})
  drawn = {
    key: figure
    for key, draw in figures.FIGURES.items()
    if (figure := draw(found))
  }
  svgs = {key: export.svg(key, figure) for key, figure in drawn.items()}
  assert {"accuracy", "claims"} <= set(svgs)
  assert all(
    "NaN" not in svg and "Infinity" not in svg for svg in svgs.values()
  )
  text = page.render(found, drawn, svgs)
  assert not _Reader(text).open
  assert "None" not in re.sub(r"<[^>]*>", "", text)


@pytest.mark.parametrize("name", figures.FIGURES)
def test_every_figure_is_valid_and_says_n_interval_and_axes(name, found):
  figure = figures.FIGURES[name](found)
  figure.chart.to_dict(validate=True)
  assert re.search(r"\d", figure.caption)
  assert re.search("interval|quartiles|mean", figure.caption)
  assert len(figure.rows) > 0
  svg = export.svg(name, figure)
  assert svg == export.svg(name, figure)
  assert svg.startswith("<svg") and 'aria-label="undefined' not in svg


def test_every_format_is_what_its_name_says(built):
  heads = {"svg": b"<svg", "png": b"\x89PNG", "pdf": b"%PDF"}
  for name, format in itertools.product(figures.FIGURES, export.FORMATS):
    data = (built / "figures" / f"{name}.{format}").read_bytes()
    assert data.startswith(heads[format])


def test_figures_with_nothing_to_show_do_not_stay_behind(tmp_path):
  folder = tmp_path / "report" / "figures"
  folder.mkdir(parents=True)
  for name in ("redundancy.svg", "redundancy.pdf", "mine.svg"):
    (folder / name).write_text("of an earlier report")
  bare = _without_curves(_without_compression(small(families=("dnn",))))
  report.write(str(tmp_path), reading.analyse(bare, CONFIG, {}))
  assert not list(folder.glob("redundancy.*"))
  assert (folder / "mine.svg").exists()
  assert not list((tmp_path / "report").rglob("*.tmp"))


def test_two_recipes_are_not_mixed_and_the_page_says_so():
  one = small(families=("dnn",))
  few = small(families=("dnn",), num_seeds=2, seed=1)
  other = [
    table.with_columns(run_id=pl.lit("another"), architecture=pl.lit("dnn:9"))
    for table in few
  ]
  both = records_lib.Records(
    *(pl.concat(pair) for pair in zip(one, other, strict=True))
  )
  found = reading.analyse(both, CONFIG, {})
  assert found.tables["regimes"].equals(
    reading.analyse(one, CONFIG, {}).tables["regimes"]
  )
  assert found.records.networks["run_id"].n_unique() == 1
  assert sum("left out" in line for line in found.summary) == 1


def test_narrow_activations_are_in_their_own_table_only(found):
  """Not even where they seem better than anything else."""
  rows = found.records.compression
  narrow = rows.filter(
    pl.col("quant_granularity") != "tensor", sparsity=0.0, schedule="oneshot"
  ).with_columns(
    activation_bits=pl.lit(4, pl.Int64),
    val_accuracy=pl.lit(1.0),
    test_accuracy=pl.lit(1.0),
  )
  both = found.records._replace(compression=pl.concat([rows, narrow]))
  more = reading.analyse(both, CONFIG, STUDY, layered(small()))
  name = "activation_quantization"
  assert found.tables[name].is_empty()
  assert set(more.tables[name]["bits"]) == {32, 8, 4}
  for other, table in found.tables.items():
    if other != name:
      pl.testing.assert_frame_equal(more.tables[other], table)
  assert more.summary == found.summary
  for other, draw in figures.FIGURES.items():
    assert draw(more) == draw(found), other
  (section,) = [s for s in page.SECTIONS if name in s.tables]
  assert section.id == "quantization"
  assert tables.shown(found, name, "") is None
  heads = [head.text for head in tables.shown(more, name, "").heads]
  assert heads[-2:] == ["activation bits", "damage (points)"]


def test_other_quantizers_are_in_their_own_table_only(found):
  """Not even where they seem better than anything else."""
  rows = found.records.compression
  dense = rows.filter(quant_granularity="channel", sparsity=0.0, bits=4)
  others = [
    dense.with_columns(
      quantizer=pl.lit(name),
      bits=pl.lit(bits, pl.Int64),
      quant_granularity=pl.lit(granularity),
      bytes=pl.lit(1, pl.Int64),
      val_accuracy=pl.lit(1.0),
      test_accuracy=pl.lit(1.0),
    )
    for name, bits, granularity in (
      *(("mse", 4, "channel"), ("binary", 1, "channel")),
      *(("nf4", 4, "channel"), ("bfloat16", 16, "none")),
    )
  ]
  both = found.records._replace(compression=pl.concat([rows, *others]))
  more = reading.analyse(both, CONFIG, STUDY, layered(small()))
  name = "quantizer_damage"
  assert more.tables.keys() - found.tables.keys() == {name}
  assert set(more.tables[name].select("quantizer", "bits").iter_rows()) == {
    *(("mse", 4), ("binary", 1), ("nf4", 4), ("bfloat16", 16))
  }
  for other, table in found.tables.items():
    assert more.tables[other].write_csv() == table.write_csv(), other
  assert more.summary == found.summary
  for other, draw in figures.FIGURES.items():
    assert draw(more) == draw(found), other
  (section,) = [s for s in page.SECTIONS if name in s.tables]
  assert section.id == "quantization"
  heads = [head.text for head in tables.shown(more, name, "").heads]
  assert heads[-4:] == ["quantizer", "bits", "scale per", "damage (points)"]


def test_selected_networks_are_chosen_on_validation_and_read_on_test(found):
  networks, rows = found.records.networks, found.tables["selected"]
  best = rows.filter(family="dnn", role="most accurate").row(0, named=True)
  means = networks.filter(family="dnn").group_by("architecture")
  means = means.agg(pl.mean("val_accuracy", "test_accuracy"))
  top = means.sort("val_accuracy", descending=True).row(0, named=True)
  assert best["architecture"] == top["architecture"]
  assert best["test_accuracy"] == pytest.approx(top["test_accuracy"])
  assert best["test_accuracy_low"] <= best["test_accuracy"]


def test_regime_counts_of_three_architectures():
  labels = pl.DataFrame(
    {
      "dataset": ["a"] * 3,
      "family": ["dnn", "dnn", "cnn"],
      "label_halved": ["unstable", "unstable", "unstable"],
      "label": ["unstable", "learning", "overfitting"],
      "label_doubled": ["learning", "learning", "overfitting"],
    }
  )
  counts = reading.regime_counts(labels).filter(family="dnn")
  assert counts.select("regime", "halved", "as_set", "doubled").rows() == [
    ("unstable", 2, 1, 0),
    ("learning", 0, 1, 2),
    ("overfitting", 0, 0, 0),
  ]


def test_mean_interval_is_students_and_null_for_one_value():
  frame = pl.DataFrame({"k": [1, 1, 1, 2], "x": [0.90, 0.92, 0.97, 0.5]})
  many, single = reading.mean_interval(frame, ["k"], "x", 0.95).to_dicts()
  expected = stats.t.interval(0.95, 2, 0.93, stats.sem([0.90, 0.92, 0.97]))
  assert (many["low"], many["high"]) == pytest.approx(expected)
  assert (many["mean"], many["n"]) == (pytest.approx(0.93), 3)
  assert single == {"k": 2, "mean": 0.5, "n": 1, "low": None, "high": None}


def test_stages_add_up_the_packs(found):
  assert found.tables["stages"].rows() == [("train", 2, 2.0), ("prune", 1, 2.0)]
  assert found.tables["packs"]["names"].to_list() == ['["a"]', '["b"]', "[]"]


def test_a_study_without_single_layers_shows_nothing_of_them():
  bare = small(families=("dnn",))
  for more in ({}, {k: v.clear() for k, v in layered(bare).items()}):
    found = reading.analyse(bare, CONFIG, {}, more)
    assert not {"sensitivity", "overlap"} & set(found.tables)
    for name in ("sensitivity", "overlap"):
      assert figures.FIGURES[name](found) is None


def test_the_map_holds_every_layer_from_the_input_to_the_output(found):
  figure = figures.FIGURES["sensitivity"](found)
  svg = export.svg("sensitivity", figure)
  shown = sorted({row["panel"] for row in figure.rows})
  table = found.tables["sensitivity"]
  assert shown == sorted(set(table["architecture"]))
  assert all(name in svg for name in shown)
  below = [svg.index(text) for text in (">hidden_0<", ">output<")]
  assert below == sorted(below)
  # At sparsity 0.5 the second layer loses a third of 0.5 ** 4.
  cells = {
    (row["name"], row["sparsity"]): row["text"]
    for row in figure.rows
    if row["panel"] == shown[0]
  }
  assert cells["output", ".5"] == "2.1" and cells["hidden_0", ".9"] == "33"
  assert len(cells) == 4  # sparsity 0 loses nothing and is not drawn


def test_the_overlap_of_the_whole_stands_beside_chance(found):
  figure = figures.FIGURES["overlap"](found)
  rows = [row for row in figure.rows if row["layer"] == "found"]
  assert {row["sparsity"] for row in rows} == {0.5, 0.9}
  assert len(rows) == 2 * found.tables["overlap"]["architecture"].n_unique()
  for row in figure.rows:
    if row["layer"] == "chance":
      density = 1 - row["sparsity"]
      assert row["chance"] == pytest.approx(density / (2 - density))


def test_a_map_of_many_architectures_shows_some_of_all_sizes():
  table = reading.analyse(small(), CONFIG, {}, layered(small())).tables
  one = table["sensitivity"].filter(pl.col("family") == "dnn").head(1)
  many = pl.concat(
    one.with_columns(
      architecture=pl.lit(f"dnn:{i}"),
      params=pl.lit(i, pl.Int64),
      sparsity=pl.lit(0.5),
    )
    for i in range(1, 30)
  )
  full = reading.analyse(small(), CONFIG, {})
  figure = figures.FIGURES["sensitivity"](
    full._replace(tables=full.tables | {"sensitivity": many})
  )
  shown = {row["panel"] for row in figure.rows}
  assert len(shown) == layers.MOST_PANELS and {"dnn:1", "dnn:29"} <= shown
  assert f"{layers.MOST_PANELS} of 29 architectures" in figure.caption


@pytest.mark.parametrize("count", [1, 2, 5])
def test_columns_keep_the_order_and_are_about_as_tall(count):
  panels, heights = list("abcde"), [50, 20, 20, 20, 60]
  parts = layers.balanced(panels, heights, count)
  assert sum(parts, []) == panels and len(parts) == count
  tallest = max(
    sum(heights[panels.index(panel)] for panel in part) for part in parts
  )
  assert tallest == {1: 170, 2: 90, 5: 60}[count]


def test_csv_holds_every_column_at_full_precision(built, found):
  with open(built / "tables" / "regimes.csv") as file:
    rows = list(csv.DictReader(file))
  table = found.tables["regimes"]
  assert list(rows[0]) == table.columns
  assert [float(row["mean_accuracy"]) for row in rows] == table[
    "mean_accuracy"
  ].to_list()


def test_panels_hold_every_combination_in_order():
  frame = pl.DataFrame(
    {"family": ["cnn", "vit"], "dataset": ["a", "b"], "layer": ["p", "p"]}
  )
  chart, rows = theme.panels(
    [frame],
    [theme.only("p").mark_point()],
    ("family", ["dnn", "cnn", "vit"]),
    ("dataset", ["b", "a"]),
  )
  cells = {(row["family"], row["dataset"]) for row in rows}
  assert cells == set(itertools.product(["cnn", "vit"], ["a", "b"]))
  facet = chart.to_dict(validate=True)["facet"]
  assert facet["column"]["sort"] == ["cnn", "vit"]
  assert facet["row"]["sort"] == ["b", "a"]


def test_rows_hold_what_json_can():
  frame = pl.DataFrame({"x": [0.5, float("nan"), float("inf")], "n": [1, 2, 3]})
  assert [row["x"] for row in theme.rows(frame)] == [0.5, None, None]


@pytest.mark.parametrize("low", [1.0, 7.0, 85.0, 612.0])
@pytest.mark.parametrize("ratio", [1.01, 1.7, 9.0, 120.0, 1e4, 1e9])
def test_log_ticks_are_few_ordered_and_inside(low, ratio):
  ticks = theme.log_ticks(low, low * ratio)
  assert ticks == sorted(set(ticks))
  assert 1 <= len(ticks) <= 6
  assert all(low <= tick <= low * ratio for tick in ticks)
  assert len(ticks) >= 3 or ratio < 5


@pytest.mark.parametrize(
  ("value", "form", "text"),
  [
    (None, "count", "\u2013"),
    (float("inf"), "count", "\u2013"),
    (12345.0, "count", "12,345"),
    (0.97123, "percent", "97.1"),
    (-0.0123, "points", "\u22121.23"),
    (0.5, "sparsity", "0.50"),
    ("dnn:8-8", "text", "dnn:8-8"),
    (True, "flag", "yes"),
  ],
)
def test_values_are_written_for_readers(value, form, text):
  assert tables.written(value, form) == text


def test_a_long_table_is_cut_and_says_so(found):
  regimes = found.tables["regimes"]
  many = pl.concat([regimes] * (tables.MOST_ROWS // len(regimes) + 1))
  long = found._replace(tables=found.tables | {"regimes": many})
  assert len(tables.shown(long, "regimes", "").rows) == tables.MOST_ROWS
  assert f"of {len(many)} rows; all are in the CSV" in page.render(long, {}, {})
