"""Every example in a docstring of a public name runs and says what it says."""

import doctest
import functools

import jax
import numpy as np
import optax
import pytest

import minarch_jax as ma
from minarch_jax import models
from minarch_jax.architectures import Problem
from minarch_jax.types import Batch

SHAPE, CLASSES = (4, 4, 1), 3
PARSER = doctest.DocTestParser()


@functools.cache
def names():
  """What an example may use: a network of one hidden layer, and nine images."""
  architecture = ma.Architecture.parse("dnn:6")
  model = models.make_model(architecture, Problem(SHAPE, CLASSES))
  rng = np.random.default_rng(0)
  x = rng.normal(size=(9, *SHAPE)).astype(np.float32)
  batch = Batch(x, rng.integers(0, CLASSES, 9).astype(np.int32))

  def loss(params, batch):
    logits = model.apply(params, batch.x)
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, batch.y
    ).mean()

  gradient = jax.jit(jax.grad(loss))

  def train(params, masks, steps):
    for _ in range(min(steps, 3)):
      grads = gradient(params, batch)
      params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
      params = ma.apply_masks(params, masks)
    return params

  return {
    "architecture": architecture,
    "batch": batch,
    "jax": jax,
    "loss": loss,
    "ma": ma,
    "model": model,
    "np": np,
    "optax": optax,
    "params": jax.device_get(jax.jit(model.init)(jax.random.key(0))),
    "spec": architecture.spec(Problem(SHAPE, CLASSES)),
    "train": train,
    "x": x,
  }


def documented():
  """The public names and their docstrings, of modules too."""
  return {name: getattr(ma, name).__doc__ or "" for name in ma.__all__}


EXAMPLES = {name: doc for name, doc in documented().items() if ">>>" in doc}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_runs(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  test = PARSER.get_doctest(EXAMPLES[name], dict(names()), name, None, None)
  report = []
  runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
  runner.run(test, out=report.append)
  assert not runner.failures, "".join(report)


def test_every_transform_is_shown_in_an_example():
  shown = "".join(EXAMPLES.values())
  for name in ma.__all__:
    found = getattr(ma, name)
    home = getattr(found, "__module__", getattr(found, "__name__", ""))
    if home.split(".")[1] in ("pruning", "quantization"):
      assert f"ma.{name}" in shown, name
