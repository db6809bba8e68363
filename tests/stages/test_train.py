"""The sweep: what is missing is trained, once, and whole files say so."""

import threading
from unittest import mock

import polars as pl
import polars.testing
import pytest

import minarch_jax as ma
from minarch_jax import records
from minarch_jax.engine import packs
from minarch_jax.stages import compress, train
from tests import tiny_study
from tests.tiny_study import CONFIG, MEMBERS


def test_an_interrupted_sweep_goes_on_where_it_stopped(studied, tmp_path):
  session, out = tiny_study.open_session(), str(tmp_path)
  plan = train.plan_missing(session, MEMBERS, out)
  assert len(plan) > 1
  interrupting = tiny_study.interrupting(packs.train, 1)
  with (
    mock.patch.object(packs, "train", interrupting),
    pytest.raises(tiny_study.Interrupted),
  ):
    train.sweep(session, out)
  some = ma.read_records(out).networks
  assert 0 < len(some) < 8
  session = tiny_study.open_session()  # the other one was told to stop
  statistics = train.sweep(session, out)
  assert len(statistics) == len(plan) - 1
  compress.compress(session, out)
  tiny_study.assert_same_tables(
    ma.read_records(out), ma.read_records(str(studied))
  )


def test_an_error_stops_what_runs_beside_it_and_leaves_whole_files(
  studied, tmp_path
):
  session, out = tiny_study.open_session(packs_at_once=2), str(tmp_path)
  original, beside = packs.train, threading.Event()

  def failing(session, pack, *arguments):
    if pack.parent.family == "cnn":
      assert beside.wait(60)
      raise OSError("no space left on device")
    beside.set()
    assert session.stop.wait(60)
    return original(session, pack, *arguments)

  with (
    mock.patch.object(packs, "train", failing),
    pytest.raises(OSError, match="no space left"),
  ):
    train.sweep(session, out)
  assert not tiny_study.files(out)
  tiny_study.run(out)
  tiny_study.assert_same_tables(
    ma.read_records(out), ma.read_records(str(studied))
  )


def test_a_pack_without_its_last_file_is_trained_again(copy):
  networks = copy / "records" / "networks"
  lost = sorted(networks.iterdir())[0]
  expected = ma.read_records(str(copy))
  count = len(pl.read_parquet(lost))
  lost.unlink()
  statistics = train.sweep(tiny_study.open_session(), str(copy))
  assert sum(s["members"] * s["seeds"] for s in statistics) == count
  tiny_study.assert_same_tables(ma.read_records(str(copy)), expected)


def test_more_seeds_and_architectures_train_only_what_is_new(copy):
  before = ma.read_records(str(copy)).networks
  session = tiny_study.open_session(
    num_seeds=3, architectures=(*CONFIG.architectures, "dnn:5")
  )
  statistics = train.sweep(session, str(copy))
  assert sum(s["members"] * s["seeds"] for s in statistics) == 4 * 1 + 3
  after = ma.read_records(str(copy)).networks
  assert len(after) == 15
  pl.testing.assert_frame_equal(
    after.join(before, on=("architecture", "seed"), how="semi"), before
  )


def test_another_recipe_is_kept_apart_and_another_machine_is_not(copy):
  before = ma.read_records(str(copy)).networks
  machine = tiny_study.open_session(device_map="pmap", seed_mapping="vmap")
  assert train.sweep(machine, str(copy)) == []
  other = tiny_study.open_session(learning_rate=0.02, architectures=("dnn:3",))
  assert train.sweep(other, str(copy))
  after = ma.read_records(str(copy)).networks
  assert after["run_id"].n_unique() == 2
  assert len(after) == len(before) + 2


def test_a_part_is_named_by_its_recipe_members_and_seeds(studied):
  """Golden: changes only together with records.SCHEMA_VERSION."""
  session, out = tiny_study.open_session(), str(studied)
  ids = {
    records.content_id(
      [
        records.content_id(
          {"recipe": session.config.recipe(), "data": "bytes"}
        ),
        [str(a) for a in pack.architectures],
        [3, 4],
      ]
    )
    for pack in packs.plan(session, MEMBERS, [3, 4])
  }
  for table in ("networks", "curves"):
    assert {id for id, _ in records.parts(out, table)} == ids
