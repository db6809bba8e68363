"""Trained networks on disk: found by recipe, and as they were."""

import shutil

import jax
import numpy as np
import polars as pl
import pytest

import minarch_jax as ma
from minarch_jax import records
from minarch_jax.config import ConfigError
from minarch_jax.stages import setup, store
from tests import tiny_study
from tests.tiny_study import CONFIG, MEMBERS


def recipe():
  return setup.recipe_id(tiny_study.open_session())


def test_every_network_has_its_place(studied):
  found = store.stored(str(studied), recipe())
  assert set(found) == {(a, s) for a in CONFIG.architectures for s in (3, 4)}
  assert len(set(found.values())) == len(found)
  ids = {id for id, _ in records.parts(str(studied), "networks")}
  assert {id for id, *_ in found.values()} == ids
  assert not store.stored(str(studied), "another recipe")


def test_rows_are_those_of_the_stored_parameters(studied):
  params = store.load_params(str(studied), recipe(), MEMBERS, (4, 3))
  networks = ma.read_records(str(studied)).networks
  for a, tree in zip(MEMBERS, params, strict=True):
    for split, column in (("train", "train"), ("test", "test")):
      accuracy = ma.accuracy(a, tree, getattr(tiny_study.dataset(), split))
      rows = networks.filter(pl.col("architecture") == str(a))
      expected = rows.sort("seed", descending=True)[f"{column}_accuracy"]
      np.testing.assert_allclose(accuracy, expected, rtol=1e-6)


def test_networks_come_back_in_the_order_asked_for(studied):
  out = str(studied)
  one, other = store.load_params(out, recipe(), MEMBERS[:2], (3, 4))
  again = store.load_params(out, recipe(), MEMBERS[1::-1], (4,))
  for found, expected in zip(again, (other, one), strict=True):
    last = jax.tree.map(lambda leaf: leaf[1:], expected)
    jax.tree.map(np.testing.assert_array_equal, found, last)


def test_what_is_not_trained_is_named(studied):
  with pytest.raises(ConfigError, match="dnn:3 with seed 7 is not trained"):
    store.load_params(str(studied), recipe(), MEMBERS, (3, 7))
  with pytest.raises(
    ConfigError, match="dnn:3 with seed 3 .*experiments.sweep"
  ):
    store.load_params(str(studied), "another recipe", MEMBERS, (3,))


def test_missing_checkpoints_say_what_to_do(copy):
  shutil.rmtree(copy / "checkpoints")
  with pytest.raises(FileNotFoundError, match="copy the checkpoints too"):
    store.load_params(str(copy), recipe(), MEMBERS, (3,))


def test_the_recorded_architectures_are_those_of_the_recipe(studied):
  session, out = tiny_study.open_session(), str(studied)
  networks = records.read(out).networks
  found = store.trained(session, out, networks)
  assert found == sorted(MEMBERS, key=str)
  other = tiny_study.open_session(learning_rate=0.5)
  with pytest.raises(ConfigError, match="no network trained with these flags"):
    store.trained(other, out, networks)
