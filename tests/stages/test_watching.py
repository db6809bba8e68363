"""Loggers are told what the records hold, each part once."""

import importlib.util
import os
import struct

import polars as pl
import pytest

from minarch_jax import config as config_lib
from minarch_jax import records, registries
from minarch_jax.stages import watching
from tests.report import studies

KEYS = list(records.NETWORK)


@pytest.fixture
def out(tmp_path):
  """Two parts of two networks each, one of them compressed as well."""
  found = studies.small(families=("dnn",), num_architectures=2, num_seeds=2)
  out = str(tmp_path / "study")
  for seed in (0, 1):
    for table in ("curves", "networks"):
      rows = getattr(found, table).filter(seed=seed)
      records.write(out, table, f"part{seed}", rows)
  rows = found.compression.filter(seed=0)
  records.write(out, "compression", "all", rows)
  return out


@pytest.fixture
def told(monkeypatch):
  runs = []
  log = lambda folder, run: runs.append((folder, run))  # noqa: E731
  monkeypatch.setitem(registries.LOGGERS, "csv", log)
  return runs


def test_every_part_is_told_once(out, told):
  watching.follow(out, ("csv",))
  # Curves of two networks in each of two parts, one part compressed.
  assert len(told) == 6
  assert len({(run.name, run.part) for _, run in told}) == 6
  assert {run.study for _, run in told} == {"study"}
  watching.follow(out, ("csv",))
  assert len(told) == 6
  rows = records.read_part(out, "networks", "part0")
  records.write(out, "networks", "part2", rows)
  records.write(
    out, "curves", "part2", records.read_part(out, "curves", "part0")
  )
  watching.follow(out, ("csv",))
  assert len(told) == 8


def test_a_part_whose_networks_are_not_done_waits(out, told):
  os.remove(records.part(out, "networks", "part1"))
  watching.follow(out, ("csv",))
  assert {run.config["seed"] for _, run in told} == {0}


def test_what_is_told_are_the_records(out, told):
  watching.follow(out, ("csv",))
  curves = records.read_table(out, "curves")
  compression = records.read_table(out, "compression")
  for _, run in told:
    own = {name: run.config[name] for name in KEYS}
    if run.part == "curves":
      rows = curves.filter(**own).sort("epoch")
      assert [step for step, _ in run.points] == rows["epoch"].to_list()
      assert [v["val/accuracy"] for _, v in run.points] == rows[
        "val_accuracy"
      ].to_list()
    else:
      rows = compression.filter(**own)
      assert sum(len(values) for _, values in run.points) == len(rows)
      assert {step for step, _ in run.points} == {0, 50, 90}


def test_a_logger_that_fails_is_named_and_asked_again(out, monkeypatch, told):
  def fails(folder, run):
    raise RuntimeError("no space")

  monkeypatch.setitem(registries.LOGGERS, "wandb", fails)
  with pytest.raises(config_lib.ConfigError, match="--log=wandb failed .no sp"):
    watching.follow(out, ("csv", "wandb"))
  assert len(told) == 6
  monkeypatch.setitem(registries.LOGGERS, "wandb", registries.LOGGERS["csv"])
  watching.follow(out, ("csv", "wandb"))
  assert len(told) == 12


def test_csv_files_hold_the_curves(out):
  watching.follow(out, ("csv",))
  (run,) = [
    run
    for run in watching.runs_of(out, "curves", "part0")
    if run.config["architecture"] == "dnn:1"
  ]
  path = os.path.join(out, "logs", "csv", "study", run.name, "curves.csv")
  written = pl.read_csv(path)
  assert written["epoch"].to_list() == [step for step, _ in run.points]
  wanted = [values["val/loss"] for _, values in run.points]
  assert written["val/loss"].to_list() == pytest.approx(wanted)


def _events(path):
  """Reads an event file as TensorBoard does: length, sum, message, sum."""
  from tensorboardX.proto import event_pb2

  with open(path, "rb") as file:
    while header := file.read(12):
      (length,) = struct.unpack("<Q", header[:8])
      yield event_pb2.Event.FromString(file.read(length))
      file.read(4)


def test_event_files_hold_the_curves(out):
  pytest.importorskip("tensorboardX")
  watching.follow(out, ("tensorboard",))
  for run in watching.runs_of(out, "curves", "part1"):
    folder = os.path.join(out, "logs", "tensorboard", "study", run.name)
    (name,) = os.listdir(folder)  # this seed was not compressed
    assert "tfevents" in name
    found = {
      (event.step, value.tag): value.simple_value
      for event in _events(os.path.join(folder, name))
      for value in event.summary.value
    }
    wanted = {
      (step, tag): pytest.approx(value, rel=1e-6)
      for step, values in run.points
      for tag, value in values.items()
    }
    assert found == wanted


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_other_loggers_write_offline(out, name, monkeypatch):
  if not importlib.util.find_spec(registries.PACKAGES[name]):
    pytest.skip(f"{name} is not installed")
  where = os.path.join(out, "logs", "trackio")
  monkeypatch.setenv("TRACKIO_DIR", where)  # which the library reads once
  os.remove(records.part(out, "compression", "all"))
  os.remove(records.part(out, "networks", "part1"))
  watching.follow(out, (name,))
  folder = os.path.join(out, "logs", name)
  files = [f for where, _, names in os.walk(folder) for f in names]
  assert any(f.endswith((".wandb", ".db")) for f in files), files


def test_what_is_not_there_is_refused_with_the_command(monkeypatch):
  with pytest.raises(config_lib.ConfigError, match="did you mean 'csv'"):
    config_lib.Config().replace(log=("cvs",))
  monkeypatch.setitem(registries.PACKAGES, "wandb", "no_such_package")
  with pytest.raises(
    config_lib.ConfigError, match=r"pip install 'minarch-jax\[wandb\]'"
  ):
    config_lib.Config().replace(log=("wandb",))
