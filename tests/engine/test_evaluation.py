"""Evaluation: exact on splits of any size, and a diverged network scores 0."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minarch_jax import models
from minarch_jax.architectures import Architecture, Problem
from minarch_jax.engine import accuracy, evaluation, population
from minarch_jax.types import Batch
from tests.engine import scores

SHAPE, CLASSES = (4, 4, 1), 3
MODELS = ["dnn:5", "cnn:2-3", "vit:p2-d4-l1-h2"]


def split(count, seed=0):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(count, *SHAPE)).astype(np.float32)
  return Batch(x, rng.integers(CLASSES, size=count).astype(np.int32))


def linear(params, x, sizes):
  return jnp.reshape(x, (x.shape[0], -1)) @ params


def weights(seed=0):
  return np.random.default_rng(seed).normal(size=(16, CLASSES)).astype("f4")


def by_hand(logits, y):
  """Cross-entropies and hits in float64."""
  logits = np.asarray(logits, np.float64)
  shifted = logits - logits.max(1, keepdims=True)
  logs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
  return -logs[np.arange(len(y)), y], logits.argmax(1) == y


@pytest.mark.parametrize("count", [1, 4, 5, 8, 13])
@pytest.mark.parametrize("size", [1, 4, 20])
def test_chunks_hold_every_image_once(count, size):
  batch = split(count)
  chunks = evaluation.chunk(batch, size)
  assert chunks.x.shape == (-(-count // size), size, *SHAPE)
  assert chunks.y.shape == chunks.weight.shape == chunks.x.shape[:2]
  real = chunks.weight.reshape(-1) > 0
  assert real.sum() == chunks.weight.sum() == count
  np.testing.assert_array_equal(chunks.x.reshape(-1, *SHAPE)[real], batch.x)
  np.testing.assert_array_equal(chunks.y.reshape(-1)[real], batch.y)
  assert not chunks.x.reshape(-1, *SHAPE)[~real].any()


@pytest.mark.parametrize("size", [1, 4, 20])
def test_scores_are_exact_on_any_size(size):
  evaluate = jax.jit(scores.make_evaluate(linear))
  params = weights()
  for count in (1, 4, 5, 13):
    batch = split(count, seed=count)
    score = evaluate(params, evaluation.chunk(batch, size), {})
    loss, hits = by_hand(batch.x.reshape(count, -1) @ params, batch.y)
    np.testing.assert_allclose(score.loss, loss.mean(), rtol=1e-5)
    places = np.arange(count) % size % 2  # within the chunk
    for half, place in ((score.even, 0), (score.odd, 1)):
      own = loss[places == place]
      expected = own.mean() if own.size else 0.0
      np.testing.assert_allclose(half, expected, rtol=1e-5)
    assert score.correct == hits.sum()
    assert jnp.issubdtype(score.correct.dtype, jnp.integer)


def test_totals_are_sums_of_the_chunks_asked_for():
  batch, params = split(10), weights()
  chunks = evaluation.chunk(batch, 4)
  totals = jax.jit(evaluation.make_totals(linear))
  loss, hits = by_hand(batch.x.reshape(10, -1) @ params, batch.y)
  parts = [slice(0, 4), slice(4, 8), slice(8, 10)]
  for first, last in [(0, 3), (1, 3), (1, 2), (2, 2)]:
    asked = [first <= i < last for i in range(3)]
    found = totals(params, {}, chunks, np.arange(3), first, last)
    expected = [[loss[part][i::2].sum() for i in (0, 1)] for part in parts]
    np.testing.assert_allclose(
      found.loss, np.multiply(np.array(asked)[:, None], expected), rtol=1e-5
    )
    expected = np.zeros((3, 4), bool)
    for i, part in enumerate(parts):
      expected[i, : part.stop - part.start] = hits[part] & asked[i]
    np.testing.assert_array_equal(found.hits, expected)


def test_totals_take_chunks_in_the_order_given():
  chunks, params = evaluation.chunk(split(10), 4), weights()
  totals = jax.jit(evaluation.make_totals(linear))
  plain = totals(params, {}, chunks, np.arange(3), 0, 3)
  order = np.array([2, 0, 1])
  found = totals(params, {}, chunks, order, 0, 2)
  np.testing.assert_array_equal(found.loss[:2], plain.loss[order[:2]])
  np.testing.assert_array_equal(found.hits[:2], plain.hits[order[:2]])
  assert not found.loss[2].any() and not found.hits[2].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_diverged_network_has_no_correct_answer(bad):
  batch = split(9)
  # Class 0 would be right for the images of class 0.
  assert (batch.y == 0).any()
  params = np.full((16, CLASSES), bad, np.float32)
  chunks = evaluation.chunk(batch, 4)
  score = jax.jit(scores.make_evaluate(linear))(params, chunks, {})
  assert score.correct == 0
  assert not np.isfinite(score.loss)


def test_an_image_with_an_infinite_loss_is_wrong_and_others_count():
  logits = jnp.array([[0.0, 1.0, 2.0], [jnp.nan, 1.0, 2.0], [3.0, 1.0, 2.0]])
  loss, correct = evaluation.losses(logits, jnp.array([2, 2, 0]))
  np.testing.assert_array_equal(correct, [True, False, True])
  np.testing.assert_array_equal(np.isfinite(loss), [True, False, True])


def test_padding_images_cannot_spoil_a_score():
  def infinite_on_black(params, x, sizes):
    logits = linear(params, x, sizes)
    black = (x == 0).all((1, 2, 3), keepdims=True)[:, :, 0, 0]
    return jnp.where(black, jnp.inf, logits)

  batch, params = split(5), weights()
  evaluate = jax.jit(scores.make_evaluate(infinite_on_black))
  score = evaluate(params, evaluation.chunk(batch, 4), {})
  loss, hits = by_hand(batch.x.reshape(5, -1) @ params, batch.y)
  np.testing.assert_allclose(score.loss, loss.mean(), rtol=1e-5)
  assert score.correct == hits.sum()


@pytest.mark.parametrize(
  "text, count", [*zip(MODELS, (7, 600, 512), strict=True)]
)
def test_accuracy_of_stacked_networks(text, count):
  model = models.make_model(Architecture.parse(text), Problem(SHAPE, CLASSES))
  keys = jax.random.split(jax.random.key(0), 3)
  params = jax.jit(jax.vmap(model.init))(keys)
  batch = split(count)
  found = accuracy.accuracy(Architecture.parse(text), params, batch)
  logits = jax.jit(jax.vmap(model.apply, (0, None)))(params, batch.x)
  logits = np.asarray(logits)
  expected = [by_hand(each, batch.y)[1].mean() for each in logits]
  assert found.shape == (3,) and found.dtype == np.float32
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_an_accelerator_multiplies_as_in_a_study(monkeypatch):
  make = accuracy._scorer.__wrapped__  # nothing is remembered
  architecture, problem = Architecture.parse("dnn:3"), Problem(SHAPE, CLASSES)
  init = jax.vmap(models.make_model(architecture, problem).init)
  params = jax.eval_shape(init, jax.random.split(jax.random.key(0), 2))

  def lowered():
    scorer: Any = make(architecture, problem)
    return scorer.lower(params, evaluation.chunk(split(5), 4)).as_text()

  assert "HIGHEST" not in lowered()
  monkeypatch.setattr(population, "platform", lambda devices: "tpu")
  assert "HIGHEST" in lowered()
