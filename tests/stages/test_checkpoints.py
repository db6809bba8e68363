"""Checkpoints: what is restored is what was saved, to the bit."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minarch_jax import models
from minarch_jax.architectures import Architecture, Problem
from minarch_jax.stages import checkpoints

TEXTS = ["dnn:5-3", "cnn:2", "vit:p4-d4-l2-h2-cls"]


def population(seed=0):
  """Trees of several families with a leading axis of two seeds."""
  keys = jax.random.split(jax.random.key(seed), 2)
  trees = []
  for text in TEXTS:
    model = models.make_model(Architecture.parse(text), Problem((8, 8, 1), 3))
    trees.append(jax.device_get(jax.jit(jax.vmap(model.init))(keys)))
  return trees


def assert_identical(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for a, b in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    assert isinstance(a, np.ndarray) and a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


def test_restored_is_saved(tmp_path):
  params = population()
  checkpoints.save(str(tmp_path), "one", params)
  assert_identical(checkpoints.load(str(tmp_path), "one"), params)
  assert checkpoints.path(str(tmp_path), "one") == str(
    tmp_path / "checkpoints" / "one"
  )


def test_diverged_and_narrow_values_are_kept(tmp_path):
  tree = {
    "a": {"kernel": np.array([np.nan, np.inf, -0.0, 1e-40], np.float32)},
    "b": {"kernel": np.arange(3, dtype=np.float64)},
    "c": {"kernel": np.asarray(jnp.arange(3, dtype=jnp.bfloat16))},
  }
  checkpoints.save(str(tmp_path), "one", [tree])
  assert_identical(checkpoints.load(str(tmp_path), "one"), [tree])


def test_many_members_keep_their_order(tmp_path):
  params = [{"a": {"bias": np.full((1, 2), i, np.float32)}} for i in range(12)]
  checkpoints.save(str(tmp_path), "one", params)
  assert_identical(checkpoints.load(str(tmp_path), "one"), params)


def test_what_an_interrupted_run_left_is_replaced(tmp_path):
  old, new = population(0), population(1)
  checkpoints.save(str(tmp_path), "one", old)
  checkpoints.save(str(tmp_path), "two", old)
  checkpoints.save(str(tmp_path), "one", new)
  assert_identical(checkpoints.load(str(tmp_path), "one"), new)
  assert_identical(checkpoints.load(str(tmp_path), "two"), old)
  assert sorted(os.listdir(tmp_path / "checkpoints")) == ["one", "two"]


def test_relative_directories_work(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  params = population()[:1]
  checkpoints.save("results", "one", params)
  assert_identical(checkpoints.load("results", "one"), params)


def test_a_missing_checkpoint_says_what_to_do(tmp_path):
  with pytest.raises(FileNotFoundError, match="copy the checkpoints too"):
    checkpoints.load(str(tmp_path), "one")


def test_what_two_save_at_once_is_whole(tmp_path, monkeypatch):
  """As where a process was taken for dead and another does its work."""
  params, write = population(), checkpoints.write
  written = []

  def slower(target, tree):
    write(target, tree)
    if not written:
      written.append(target)
      checkpoints.save(str(tmp_path), "one", params)

  monkeypatch.setattr(checkpoints, "write", slower)
  checkpoints.save(str(tmp_path), "one", params)
  assert_identical(checkpoints.load(str(tmp_path), "one"), params)
  assert written and os.listdir(tmp_path / "checkpoints") == ["one"]


def test_a_damaged_checkpoint_in_the_way_is_replaced(tmp_path):
  params = population()
  target = tmp_path / "checkpoints" / "one"
  target.mkdir(parents=True)
  (target / "d").write_text("half")
  checkpoints.save(str(tmp_path), "one", params)
  assert_identical(checkpoints.load(str(tmp_path), "one"), params)


def test_what_cannot_be_saved_leaves_nothing(tmp_path, monkeypatch):
  def full(target, tree):
    os.makedirs(f"{target}.orbax-checkpoint-tmp")
    raise OSError("no space left")

  monkeypatch.setattr(checkpoints, "write", full)
  with pytest.raises(OSError, match="no space left"):
    checkpoints.save(str(tmp_path), "one", population())
  assert not list((tmp_path / "checkpoints").iterdir())
