"""The straight line: resumed and repeated without a change, on disk or not."""

import functools
import os
import shutil
import signal
import threading
import time
from unittest import mock

import jax
import numpy as np
import polars as pl
import polars.testing
import pytest

import minarch_jax as ma
from minarch_jax import records, study
from minarch_jax.compression import running
from minarch_jax.config import Config, ConfigError
from minarch_jax.engine import packs
from minarch_jax.stages import compress, progress, setup, store, train
from tests import tiny_study
from tests.tiny_study import CONFIG, MEMBERS


def test_the_same_again_trains_and_writes_nothing(studied):
  before = tiny_study.files(studied)
  with (
    mock.patch.object(packs, "train") as train,
    mock.patch.object(running, "compress") as compress,
  ):
    assert tiny_study.run(studied) == []
  assert not (train.called or compress.called)
  assert tiny_study.files(studied) == before


def test_the_same_elsewhere_gives_the_same_tables(studied, tmp_path):
  tiny_study.run(tmp_path, packs_at_once=3, log=("csv",))
  tiny_study.assert_same_tables(
    ma.read_records(str(tmp_path)), ma.read_records(str(studied))
  )
  # The parts are the same files: their names are hashes of what they hold.
  parts, expected = (
    {name for name in tiny_study.files(out) if name.startswith("records")}
    for out in (tmp_path, studied)
  )
  assert parts == expected
  # Whoever watched was told of every network twice.
  for part in ("curves", "compression"):
    told = list((tmp_path / "logs" / "csv").rglob(f"{part}.csv"))
    assert len(told) == len(MEMBERS) * CONFIG.num_seeds


def test_stages_one_after_the_other_are_the_line(studied, tmp_path):
  """Each returns what the line leaves in study.json."""
  session, out = tiny_study.open_session(), str(tmp_path)
  lines = train.sweep(session, out)
  lines += compress.compress(session, out)
  tiny_study.assert_same_tables(
    ma.read_records(out), ma.read_records(str(studied))
  )
  # Each stage foretells what it does itself.
  timed = ("compile_seconds", "run_seconds", "forecast_seconds")
  one, other = (
    sorted(
      [v for name, v in line.items() if name not in timed] for line in each
    )
    for each in (lines, tiny_study.packs(studied))
  )
  assert one == other and len(one) == len(lines) > 2


STAGES = {
  "sweep": (packs, "train", "networks", train.sweep),
  "compress": (running, "compress", "compression", compress.compress),
}


@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_ends_soon_and_the_next_run_does_the_rest(
  studied, tmp_path, stage
):
  """The signal comes in the middle of the second pack."""
  module, name, table, run = STAGES[stage]
  out, expected = str(tmp_path), ma.read_records(str(studied))
  if stage == "compress":
    shutil.copytree(studied, out, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "records" / table)
  work, started, pressed = vars(module)[name], [], []
  first = threading.Event()

  def interrupted(session, pack, *arguments, **options):
    started.append(pack)
    if len(started) == 1:
      return work(session, pack, *arguments, **options)
    first.wait(60)
    pressed.append(time.monotonic())
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    assert session.stop.wait(60)
    return work(session, pack, *arguments, **options)

  def written(*arguments):
    write(*arguments)
    if arguments[1] == table:
      first.set()

  write = records.write
  with (
    mock.patch.object(module, name, interrupted),
    mock.patch.object(records, "write", written),
    pytest.raises(KeyboardInterrupt),
  ):
    run(tiny_study.open_session(packs_at_once=2), out)
  assert time.monotonic() - pressed[0] < 10
  half = [
    name for name in tiny_study.files(out) if ".tmp" in name or "orbax" in name
  ]
  assert not half
  before = getattr(ma.read_records(out), table)
  assert 0 < len(before) < len(getattr(expected, table))
  left = tiny_study.open_session()
  statistics = run(left, out)
  plan = packs.plan(left, MEMBERS, list(CONFIG.seeds))
  todo = {pack.architectures for pack in plan}
  assert len(statistics) == len(todo) - 1
  if stage == "sweep":
    compress.compress(left, out)
  tiny_study.assert_same_tables(ma.read_records(out), expected)


def test_packs_that_do_not_fit_give_the_same_rows(studied, tmp_path):
  session, out = tiny_study.open_session(), str(tmp_path)
  small, few = (
    tiny_study.refusing(function, 2)
    for function in (packs.train, running.compress)
  )
  with (
    mock.patch.object(packs, "train", small),
    mock.patch.object(running, "compress", few),
  ):
    statistics = train.sweep(session, out)
    statistics += compress.compress(session, out)
  assert [line["members"] for line in statistics].count(2) == 2
  assert all(line["members"] <= 2 for line in statistics)
  found, expected = ma.read_records(out), ma.read_records(str(studied))
  for table, other in zip(found, expected, strict=True):
    # Other programs round otherwise, and a hit may hang on the last bit.
    numbers = [c for c in table.columns if c.endswith(("_loss", "_accuracy"))]
    keys = [c for c in table.columns if c not in (*numbers, "seconds")]
    table, other = (t.sort(keys) for t in (table, other))
    pl.testing.assert_frame_equal(table.select(keys), other.select(keys))
    for column in numbers:
      near = np.isclose(table[column], other[column], atol=1e-3)
      assert near.mean() > 0.9, column
  assert train.sweep(tiny_study.open_session(), out) == []
  assert compress.compress(tiny_study.open_session(), out) == []


# --- whatever happens --------------------------------------------------------


@pytest.mark.parametrize("error", [ConfigError, OSError, KeyboardInterrupt])
def test_an_opened_study_leaves_its_description(tmp_path, error):
  """Also of the packs that ended before an error."""
  config = CONFIG.replace(out=str(tmp_path))
  line = {"stage": "train", "parent": "dnn:3"}
  line |= {"run_seconds": 1.0, "forecast_seconds": 1.0}
  with tiny_study.on_made_up_data(), pytest.raises(error):  # noqa: SIM117
    with study.opened(config) as (session, statistics):
      assert session.config == config
      statistics += [line]
      raise error
  found = records.read_json(str(tmp_path / "study.json"))
  assert found["packs"] == [line]
  assert found["config"]["out"] == str(tmp_path)
  assert found["config"]["architectures"] == list(CONFIG.architectures)


def test_what_cannot_run_leaves_nothing(tmp_path):
  config = CONFIG.replace(out=str(tmp_path), dataset="digts")
  with pytest.raises(ConfigError, match="did you mean 'digits'"):
    study.run(config)
  assert not list(tmp_path.iterdir())


def test_an_error_in_compression_leaves_what_training_told(studied, tmp_path):
  failing = mock.patch.object(running, "compress", side_effect=OSError("full"))
  with failing, pytest.raises(OSError, match="full"):
    tiny_study.run(tmp_path)
  lines = tiny_study.packs(tmp_path)
  assert lines and {line["stage"] for line in lines} == {"train"}
  assert {line["stage"] for line in tiny_study.run(tmp_path)} == {"compress"}
  tiny_study.assert_same_tables(
    ma.read_records(str(tmp_path)), ma.read_records(str(studied))
  )


# --- several data sets -------------------------------------------------------

SETS = {"dataset": "digits", "datasets": ("made-up", "made-up:other")}


def test_several_data_sets_are_one_study(studied, tmp_path, capsys):
  lines = tiny_study.run(tmp_path, **SETS)
  out = str(tmp_path)
  found, alone = ma.read_records(out), ma.read_records(str(studied))
  assert set(found.networks["dataset"]) == set(SETS["datasets"])
  for table, other in zip(found, alone, strict=True):
    pl.testing.assert_frame_equal(
      table.filter(dataset="made-up").drop("seconds", strict=False),
      other.drop("seconds", strict=False),
      check_row_order=False,
    )
    assert len(table) == 2 * len(other)
  described = records.read_json(os.path.join(out, "study.json"))
  assert described["config"]["datasets"] == list(SETS["datasets"])
  assert {
    name: each["fingerprint"] for name, each in described["datasets"].items()
  } == {"made-up": "bytes", "made-up:other": "bytes of made-up:other"}
  assert {line["dataset"] for line in lines} == set(SETS["datasets"])
  said = capsys.readouterr().err.splitlines()
  heads = [line for line in said if line.endswith(" of 2)")]
  assert heads == ["made-up (1 of 2)", "made-up:other (2 of 2)"]
  # The other's images have the same shapes, so nothing is compiled for them.
  assert all(
    line["compile_seconds"] == 0
    for line in lines
    if line["dataset"] == "made-up:other"
  )
  before = tiny_study.files(tmp_path)
  assert tiny_study.run(tmp_path, **SETS) == []
  assert tiny_study.files(tmp_path) == before


def test_a_directory_grows_by_a_data_set(copy):
  lines = tiny_study.run(copy, **SETS)
  assert {line["dataset"] for line in lines} == {"made-up:other"}
  assert len(records.read_json(str(copy / "study.json"))["datasets"]) == 2


def test_walks_are_listed_in_order():
  config = CONFIG.replace(**SETS)
  found = study.walks(config, quantize=False)
  assert [walk.config.dataset for walk in found] == list(SETS["datasets"])
  assert not any(walk.config.datasets or walk.quantize for walk in found)
  assert all(walk.train and walk.prune for walk in found)
  assert [walk.alone for walk in found] == [False, False]
  assert [walk.alone for walk in study.walks(CONFIG)] == [True]


def test_all_data_sets_are_checked_before_anything_is_trained(tmp_path):
  config = Config(
    datasets=("digits", "synthetic:esay"), grid="tiny", out=str(tmp_path)
  )
  with pytest.raises(ConfigError, match="^--datasets, synthetic:esay: .*easy"):
    study.run(config)
  config = config.replace(datasets=("synthetic:easy", "digits"))
  with pytest.raises(ConfigError, match="^--datasets, digits: --batch_size"):
    study.run(config.replace(batch_size=1200))
  assert not list(tmp_path.iterdir())


# --- in memory ---------------------------------------------------------------


@functools.cache
def population():
  return ma.train(MEMBERS, tiny_study.dataset(), **overrides())


def overrides():
  """What of the tiny study is about training."""
  names = ("num_seeds", "num_epochs", "batch_size", "learning_rate")
  names += ("first_seed", "packs_at_once")
  return {name: getattr(CONFIG, name) for name in names}


def test_in_memory_gives_the_numbers_of_the_sweep_bit_for_bit(studied):
  found, expected = population(), ma.read_records(str(studied))
  for table in ("networks", "curves"):
    one, other = getattr(found, table), getattr(expected, table)
    keys = ["architecture", "seed", *(["epoch"] * (table == "curves"))]
    pl.testing.assert_frame_equal(
      one.drop("run_id", "seconds", strict=False).sort(keys),
      other.drop("run_id", "seconds", strict=False).sort(keys),
      check_exact=True,
    )
  recipe = setup.recipe_id(tiny_study.open_session())
  params = store.load_params(str(studied), recipe, MEMBERS, CONFIG.seeds)
  jax.tree.map(np.testing.assert_array_equal, found.params, params)


def test_in_memory_no_other_machine_takes_part():
  with pytest.raises(ConfigError, match="executor='ray' leaves files"):
    ma.train(MEMBERS, tiny_study.dataset(), executor="ray", batch_size=8)


def test_in_memory_a_pack_that_does_not_fit_is_halved_too():
  sizes = []
  refusing = tiny_study.refusing(packs.train, 2)

  def noted(session, pack, *arguments):
    sizes.append(len(pack.architectures))
    return refusing(session, pack, *arguments)

  with mock.patch.object(packs, "train", noted):
    found = ma.train(MEMBERS, tiny_study.dataset(), **overrides())
  assert max(sizes) > 2 and 2 in sizes
  expected = population()
  assert found.architectures == expected.architectures
  assert found.networks["architecture"].equals(
    expected.networks["architecture"]
  )
  for one, other in zip(found.params, expected.params, strict=True):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
      *(one, other),
    )


@pytest.mark.parametrize("slow", [False, True])
def test_progress_is_shown_only_when_slow(monkeypatch, capsys, slow):
  monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0 if slow else 1e9)
  ma.train(MEMBERS[:1], tiny_study.dataset(), **overrides())
  shown = capsys.readouterr().err
  assert ("train: 100%, about 0:00 left" in shown) == slow
  assert slow or not shown


# --- divergence --------------------------------------------------------------


def test_a_diverged_network_is_a_row_like_any_other(tmp_path):
  session = tiny_study.open_session(
    optimizer="sgd",
    schedule="constant",
    learning_rate=1e6,
    architectures=("dnn:3-3",),
  )
  train.sweep(session, str(tmp_path))
  compress.compress(session, str(tmp_path))
  found = ma.read_records(str(tmp_path))
  bad = found.networks.filter("diverged")
  assert len(bad)
  assert bad["diverged_epoch"].is_between(1, 3).all()
  for split in ("train", "val", "test"):
    assert found.networks[f"{split}_accuracy"].null_count() == 0
    assert not found.networks[f"{split}_loss"].is_nan().any()
  lost = bad.filter(pl.col("test_loss").is_null())
  assert (lost["test_accuracy"] == 0).all()
  points = found.curves.join(bad, on=("architecture", "seed"))
  after = points.filter(pl.col("epoch") >= pl.col("diverged_epoch"))
  assert after.filter(pl.col("train_loss").is_null()).height
  before = points.filter(pl.col("epoch") < pl.col("diverged_epoch"))
  assert before["train_loss"].null_count() == 0
  assert found.compression["test_accuracy"].null_count() == 0
  healthy = found.networks.filter(~pl.col("diverged"))
  assert healthy["diverged_epoch"].null_count() == len(healthy)
