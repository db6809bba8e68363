"""The names a notebook relies on, and a study in a few lines."""

import dataclasses
import functools
import inspect
from unittest import mock

import jax
import numpy as np
import optax
import polars as pl
import pytest

import minarch_jax as ma
from minarch_jax import models, records
from minarch_jax.architectures import Problem
from minarch_jax.config import ConfigError
from minarch_jax.engine import planning
from tests import made_up
from tests.made_up import CLASSES, SHAPE

TEXTS = ["dnn:5-3", "cnn:2", "dnn:8"]


@functools.cache
def dataset():
  return made_up.dataset(52, 13, 11, spread=2.0, fingerprint="bytes")


def train(texts=tuple(TEXTS), **overrides):
  options = {"num_seeds": 3, "num_epochs": 4, "batch_size": 8, **overrides}
  return ma.train(list(texts), dataset(), **options)


@functools.cache
def population():
  return train()


# --- names -------------------------------------------------------------------

# DESIGN.md section 5: what notebooks and checks import.
NAMES = (
  *("Architecture", "grid", "load", "train", "prune", "apply_masks"),
  *("quantize", "dequantize", "masked", "chain", "accuracy", "compact"),
  *("read_records", "regimes", "minimal_parameters", "pruning_phases"),
  *("claims", "recommend"),
)


@pytest.mark.parametrize("name", sorted({*NAMES, *ma.__all__}))
def test_every_public_name_is_there_and_documented(name):
  assert name in dir(ma)
  found = getattr(ma, name)
  assert callable(found) or inspect.ismodule(found)
  assert found.__doc__


def test_other_names_are_attribute_errors():
  with pytest.raises(AttributeError, match="no attribute 'trane'"):
    ma.trane  # noqa: B018


# --- training ----------------------------------------------------------------


def test_a_population_is_in_the_order_asked_for():
  found = population()
  assert [str(a) for a in found.architectures] == TEXTS
  for a, params in zip(found.architectures, found.params, strict=True):
    spec = a.spec(Problem(SHAPE, CLASSES))
    flat = models.flatten(params)
    assert set(flat) == {leaf.path for leaf in spec.leaves}
    for leaf in spec.leaves:
      assert flat[leaf.path].shape == (3, *spec.shape(leaf))
      assert isinstance(flat[leaf.path], np.ndarray)


def test_its_tables_are_records():
  found = population()
  assert set(found.networks.columns) == records.SCHEMAS["networks"].keys()
  assert set(found.curves.columns) == records.SCHEMAS["curves"].keys()
  assert len(found.networks) == 3 * 3 and len(found.curves) == 3 * 3 * 4
  for a, params in zip(found.architectures, found.params, strict=True):
    rows = found.networks.filter(pl.col("architecture") == str(a)).sort("seed")
    assert rows["seed"].to_list() == [0, 1, 2]
    accuracy = ma.accuracy(a, params, dataset().test)
    np.testing.assert_allclose(rows["test_accuracy"], accuracy, rtol=1e-6)
  learnt = found.curves.filter(pl.col("epoch") == 4)["train_loss"]
  start = found.curves.filter(pl.col("epoch") == 1)["train_loss"]
  assert learnt.mean() < start.mean()


def test_architectures_and_texts_mean_the_same():
  given = [ma.Architecture.parse("dnn:8")]
  found = ma.train(given, dataset(), num_seeds=3, num_epochs=4, batch_size=8)
  expected = population().params[2]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
    found.params[0],
    expected,
  )


def test_seeds_split_over_packs_come_back_in_order():
  plan = planning.plan

  def one_seed_each(members, seeds, work, **options):
    return [p for seed in seeds for p in plan(members, [seed], work, **options)]

  with mock.patch.object(planning, "plan", one_seed_each):
    found = train(("dnn:8",), first_seed=1, num_seeds=2)
  expected = jax.tree.map(lambda leaf: leaf[1:], population().params[2])
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
    found.params[0],
    expected,
  )


@pytest.mark.parametrize(
  "texts, overrides, error, message",
  [
    (["dnn:8"], {"num_epoch": 3}, ConfigError, "did you mean 'num_epochs'"),
    (["dnn:8"], {"optimizer": "adm"}, ConfigError, "did you mean 'adam'"),
    (["dn:8"], {}, ValueError, "did you mean 'dnn'"),
    (["vit:p3-d4-l1-h1"], {}, ValueError, "patch 3 does not divide"),
    (["dnn:8"], {"batch_size": 53}, ValueError, "larger than the training"),
  ],
)
def test_wrong_arguments_are_named(texts, overrides, error, message):
  with pytest.raises(error, match=message):
    train(texts, **overrides)


def with_one(array, value):
  """A copy whose last entry is `value`."""
  changed = np.array(array)
  changed.reshape(-1)[-1] = value
  return changed


# Splits that would train to chance, as (images, labels, classes) of made-up
# ones.
WRONG_DATA = {
  "label above": (
    lambda x, y: (x, with_one(y, 3), 3),
    "train split of 'made-up': labels reach from 0 to 3, .*num_classes=4",
  ),
  "label below": (
    lambda x, y: (x, with_one(y, -1), 3),
    "labels reach from -1 to 2, .*number classes from 0",
  ),
  "classes too few": (lambda x, y: (x, y, 2), "0 to 2.*say num_classes=3"),
  "classes too many": (
    lambda x, y: (x, y, 10),
    "num_classes=10, .*largest label .* is 2; say num_classes=3",
  ),
  "nan": (
    lambda x, y: (with_one(x, np.nan), y, 3),
    "1 of 52 images are NaN or infinite, the first at 51",
  ),
  "infinite": (lambda x, y: (with_one(x, np.inf), y, 3), "NaN or infinite"),
  "features": (
    lambda x, y: (x.reshape(len(x), -1), y, 3),
    r"x has shape \(52, 16\) .*x\[:, None, :, None\]",
  ),
  "lengths": (lambda x, y: (x[1:], y, 3), "51 images and 52 labels"),
  "no images": (lambda x, y: (x[:0], y[:0], 3), "0 images and 0 labels"),
  "floats": (
    lambda x, y: (x, y.astype(np.float32), 3),
    r"labels are float32 of shape \(52,\)",
  ),
  "one-hot": (
    lambda x, y: (x, np.eye(3, dtype=np.int32)[y], 3),
    r"int32 of shape \(52, 3\).*argmax",
  ),
}


@pytest.mark.parametrize("name", WRONG_DATA)
def test_wrong_data_are_named_before_anything_compiles(name):
  change, message = WRONG_DATA[name]
  x, y, classes = change(*dataset().train)
  wrong = dataclasses.replace(
    dataset(), train=ma.Batch(x, y), num_classes=classes
  )
  with (
    mock.patch.object(planning, "plan", side_effect=AssertionError),
    pytest.raises(ValueError, match=message),
  ):
    ma.train(["dnn:8"], wrong, num_seeds=1, num_epochs=1, batch_size=8)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_images_of_all_splits_are_looked_at(split):
  x, y = getattr(dataset(), split)
  for batch, message in (
    (ma.Batch(with_one(x, np.nan), y), f"{split} split of .*NaN"),
    (ma.Batch(x[:, :2], y), f"{split} split of .*bring them to one shape"),
  ):
    wrong = dataclasses.replace(dataset(), **{split: batch})
    with pytest.raises(ValueError, match=message):
      ma.train(["dnn:8"], wrong, num_seeds=1, num_epochs=1, batch_size=8)


def test_no_architectures_are_no_default():
  with (
    mock.patch.object(planning, "plan", return_value=[]),
    pytest.raises(ValueError, match="architectures"),
  ):
    train([])


# --- compression in a few lines ----------------------------------------------


def test_prune_in_three_lines():
  params = jax.tree.map(lambda leaf: leaf[0], population().params[0])
  masks = ma.prune(params, 0.6)
  params = ma.apply_masks(params, masks)
  tx = ma.masked(optax.adamw(0.1), masks)
  assert abs(float(ma.sparsity(masks)) - 0.6) < 0.02
  state = tx.init(params)
  grads = jax.tree.map(np.ones_like, params)
  updates, _ = jax.jit(tx.update)(grads, state, params)
  moved = optax.apply_updates(params, updates)
  for mask, leaf in zip(
    jax.tree.leaves(masks), jax.tree.leaves(moved), strict=True
  ):
    mask = np.broadcast_to(mask, leaf.shape)
    assert not np.asarray(leaf)[~mask].any() and np.asarray(leaf)[mask].all()


@pytest.mark.parametrize("index", range(2), ids=TEXTS[:2])
def test_transforms_map_over_seeds(index):
  params = population().params[index]
  architecture = population().architectures[index]
  transform = ma.chain(
    lambda p: ma.apply_masks(p, ma.prune(p, 0.3)),
    lambda p: ma.dequantize(ma.quantize(p, 8)),
  )
  found = jax.jit(jax.vmap(transform))(params)
  for seed in range(3):
    one = jax.tree.map(lambda leaf, s=seed: leaf[s], params)
    jax.tree.map(
      lambda a, b, s=seed: np.testing.assert_allclose(a[s], b, rtol=1e-6),
      found,
      jax.jit(transform)(one),
    )
  accuracy = ma.accuracy(architecture, found, dataset().test)
  assert accuracy.shape == (3,)
  near = ma.accuracy(architecture, params, dataset().test)
  assert np.abs(accuracy - near).mean() < 0.35


def test_neutral_elements_change_nothing():
  params = population().params[0]
  dense = jax.vmap(lambda p: ma.apply_masks(p, ma.prune(p, 0.0)))(params)
  plain = ma.dequantize(ma.quantize(params, 32))
  same = ma.chain()(params)
  for found in (dense, plain, same):
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_quantized_weights_are_q_tensors_and_the_rest_is_left():
  params = jax.tree.map(lambda leaf: leaf[0], population().params[0])
  quantized = ma.quantize(params, 4)
  for layer, leaves in quantized.items():
    assert isinstance(leaves["kernel"], ma.QTensor)
    np.testing.assert_array_equal(leaves["bias"], params[layer]["bias"])


# --- analysis ----------------------------------------------------------------


def test_tables_of_a_population_can_be_analysed():
  found = population()
  empty = pl.DataFrame(schema=records.SCHEMAS["compression"])
  tables = ma.Records(found.networks, found.curves, empty)
  regimes = ma.regimes(tables)
  assert set(regimes["architecture"]) == set(TEXTS)
  assert set(regimes["label"]) <= {"unstable", "learning", "overfitting"}
  assert "p_min" in ma.minimal_parameters(tables).columns
  assert len(ma.claims(tables)) == 8
