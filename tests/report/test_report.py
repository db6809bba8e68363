"""The report: complete, deterministic, whatever the records."""

import csv
import itertools
import os
import pathlib
import re
import subprocess
import sys

import polars as pl
import polars.testing
import pytest

from minarch_jax import config as config_lib
from minarch_jax import registries, report
from minarch_jax.report import (
  reading,
)
from tests.report import studies


def test_all_files_exist_and_nothing_else(built):
  expected = {"index.html", "method.html", "summary.json"}
  expected |= {
    f"figures/{name}.{format}"
    for name, format in itertools.product(
      registries.FIGURES, config_lib.FORMATS
    )
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


def test_same_records_give_the_same_bytes_without_jax(built, tmp_path):
  """Also through the command, in another process."""
  out = studies.save(
    tmp_path, studies.small(), studies.STUDY, studies.layered(studies.small())
  )
  program = (
    "import sys, runpy\n"
    "try: runpy.run_module('experiments.report', run_name='__main__')\n"
    "except SystemExit as end: assert not end.code, end.code\n"
    "heavy = {'jax', 'flax', 'tensorflow', 'scipy.stats'} & set(sys.modules)\n"
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
  out = studies.save(
    tmp_path, studies.small(num_seeds=1).__class__(*[pl.DataFrame()] * 3)
  )
  with pytest.raises(config_lib.ConfigError, match="no trained network"):
    report.build(out)


def test_figures_with_nothing_to_show_do_not_stay_behind(tmp_path):
  folder = tmp_path / "report" / "figures"
  folder.mkdir(parents=True)
  for name in ("redundancy.svg", "redundancy.pdf", "mine.svg"):
    (folder / name).write_text("of an earlier report")
  bare = studies.without_curves(
    studies.without_compression(studies.small(families=("dnn",)))
  )
  report.write(str(tmp_path), reading.analyse(bare, studies.CONFIG, {}))
  assert not list(folder.glob("redundancy.*"))
  assert (folder / "mine.svg").exists()
  assert not list((tmp_path / "report").rglob("*.tmp"))


def test_files_of_figures_are_those_that_are_asked_for(tmp_path):
  folder = tmp_path / "report" / "figures"
  records = studies.without_curves(studies.small(families=("dnn",)))
  for formats in (("svg", "png"), ("png",), ()):
    config = studies.CONFIG.replace(figures=formats)
    page = report.write(str(tmp_path), reading.analyse(records, config, {}))
    assert {path.suffix[1:] for path in folder.glob("*")} == set(formats)
    text = pathlib.Path(page).read_text()
    assert text.count("<svg") > 3
    links = set(re.findall(r'href="figures/[^"]*\.(\w+)"', text))
    assert links == set(formats)


def test_csv_holds_every_column_at_full_precision(built, found):
  with open(built / "tables" / "regimes.csv") as file:
    rows = list(csv.DictReader(file))
  table = found.tables["regimes"]
  assert list(rows[0]) == table.columns
  assert [float(row["mean_accuracy"]) for row in rows] == table[
    "mean_accuracy"
  ].to_list()
