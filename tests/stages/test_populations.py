"""Populations of one's own optimizer, loss, init and rates; trained on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import polars as pl
import pytest

import minarch_jax as ma
from minarch_jax import records
from minarch_jax.config import ConfigError
from tests import made_up

TEXTS = ["dnn:5-3", "dnn:8"]


@functools.cache
def dataset():
  return made_up.dataset(52, 13, 11, spread=2.0, fingerprint="bytes")


def train(texts=tuple(TEXTS), **given):
  options = {"num_seeds": 2, "num_epochs": 2, "batch_size": 8, **given}
  return ma.train(list(texts), dataset(), **options)


def assert_near(a, b, rtol=1e-4, atol=1e-5):
  near = functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol)
  jax.tree.map(near, a, b)


def assert_same_tables(a, b):
  assert a.curves.equals(b.curves)
  assert a.networks.drop("seconds").equals(b.networks.drop("seconds"))


def numbers(frame):
  return frame.select(pl.selectors.float()).to_numpy()


def lamb(learning_rate):
  """Reads the norm of each leaf, which padding in a parent would change."""
  return optax.lamb(learning_rate)


@functools.cache
def by_lamb():
  return train(tx=lamb, schedule="constant", learning_rate=0.01)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_adam_of_ones_own_is_adam(schedule):
  own = train(tx=optax.adam, schedule=schedule)
  ours = train(schedule=schedule)
  assert_near(own.params, ours.params)
  losses = (found.curves["val_loss"].to_numpy() for found in (own, ours))
  assert_near(*losses)
  assert set(own.networks.columns) == records.SCHEMAS["networks"].keys()


def test_an_optimizer_that_reads_norms_meets_no_padding():
  """The small network of a pair is trained as alone."""
  alone = train(["dnn:5-3"], tx=lamb, schedule="constant", learning_rate=0.01)
  assert_near(by_lamb().params[0], alone.params[0])
  fixed = optax.lamb(0.01)
  finished = train(["dnn:5-3"], tx=fixed, schedule="constant")
  assert_near(finished.params[0], alone.params[0])


def test_loss_and_init_of_ones_own():
  """Neutral: the usual cross-entropy, as a mean, changes nothing."""

  def loss(logits, y):
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

  assert_near(train(loss=loss).params, train().params)

  def init(key, shapes):
    found = jax.tree.leaves(shapes)
    keys = jax.random.split(key, len(found))
    pairs = zip(keys, found, strict=True)
    drawn = [jax.random.normal(k, s.shape) for k, s in pairs]
    return jax.tree.unflatten(jax.tree.structure(shapes), drawn)

  def doubled(logits, y):
    return 2 * optax.softmax_cross_entropy_with_integer_labels(logits, y)

  still = {"init": init, "learning_rate": 1e-9, "num_epochs": 1}
  found, twice = train(**still), train(**still, loss=doubled)
  for a, params in zip(found.architectures, found.params, strict=True):
    shapes = jax.tree.map(lambda leaf: leaf[0], params)
    for seed in range(2):
      key = jax.random.fold_in(jax.random.key(seed), 0)
      one = jax.tree.map(lambda leaf, seed=seed: leaf[seed], params)
      assert_near(one, init(key, shapes))
    assert str(a) in TEXTS
  assert set(found.networks["init"]) == {"own"}
  once = found.curves["val_loss"].to_numpy()
  np.testing.assert_allclose(twice.curves["val_loss"], 2 * once, rtol=1e-5)


def test_several_rates_are_each_as_alone_and_the_best_is_chosen():
  rates = [0.1, 1e-3]
  found = train(learning_rate=rates)
  assert found.learning_rates == rates
  alone = [train(learning_rate=rate) for rate in rates]
  for i in range(len(TEXTS)):
    for j, other in enumerate(alone):
      own = jax.tree.map(lambda leaf, j=j: leaf[j], found.params[i])
      assert_near(own, other.params[i], 1e-6, 1e-7)
  for other, rate in zip(alone, rates, strict=True):
    for name in ("curves", "networks"):
      rows = getattr(found, name).filter(learning_rate=rate)
      columns = ["architecture", "seed", "val_loss"]
      assert rows.select(columns).equals(getattr(other, name).select(columns))
  best = found.best()
  means = [
    [
      other.networks.filter(architecture=text)["val_accuracy"].mean()
      for other in alone
    ]
    for text in TEXTS
  ]
  for i, text in enumerate(TEXTS):
    rows = best.networks.filter(pl.col("architecture") == text)
    assert rows["val_accuracy"].mean() == max(means[i]) and len(rows) == 2
    assert_near(
      best.params[i], alone[int(np.argmax(means[i]))].params[i], 1e-6, 1e-7
    )
  assert set(best.networks.columns) == records.SCHEMAS["networks"].keys()
  with pytest.raises(ValueError, match="there is one learning rate"):
    alone[0].best()
  with pytest.raises(ValueError, match="start is a choice of networks"):
    train(learning_rate=rates, num_epochs=3, start=best)


@pytest.mark.parametrize("own", [False, True], ids=["usual", "own optimizer"])
def test_training_on_is_training_straight_through(own, tmp_path):
  recipe = {"schedule": "constant", "learning_rate": 0.01}
  recipe |= {"tx": lamb} if own else {}
  begun = by_lamb() if own else train(**recipe)
  through = train(num_epochs=4, **recipe)
  on = train(num_epochs=4, start=begun, **recipe)
  # Two epochs and four are two programs, which JAX 0.10 rounds differently.
  assert_near(on.params, through.params, 1e-5, 1e-6)
  assert_near(*(numbers(found.curves) for found in (on, through)), 1e-5, 1e-6)
  path = str(tmp_path / "kept")
  begun.save(path)
  back = ma.load_population(path)
  assert_same_tables(back, begun)
  jax.tree.map(np.testing.assert_array_equal, back.params, begun.params)
  assert back.config == begun.config
  later = train(num_epochs=4, start=back, **recipe)
  assert_same_tables(later, on)
  jax.tree.map(np.testing.assert_array_equal, later.params, on.params)
  with pytest.raises(FileExistsError, match="is not empty"):
    begun.save(path)


def test_a_damaged_or_missing_population_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match="holds no population"):
    ma.load_population(str(tmp_path))
  path = tmp_path / "kept"
  by_lamb().save(str(path))
  (path / "curves.parquet").write_bytes(b"PAR1")
  with pytest.raises(ConfigError, match="is no whole population"):
    ma.load_population(str(path))


WRONG = {
  "rate of a finished optimizer": (
    {"tx": optax.adam(0.1), "learning_rate": [0.1, 0.2]},
    "tx is a finished optimizer with a rate of its own",
  ),
  "no optimizer": ({"tx": 3}, "tx is 3; pass an optax optimizer"),
  "no argument of a rate": (
    {"tx": lambda rate: optax.adam(rate)},
    "tx takes .rate., .* give them the same names",
  ),
  "two optimizers": (
    {"tx": optax.adam, "optimizer": "sgd"},
    "optimizer='sgd' and tx= both",
  ),
  "no rate": ({"learning_rate": []}, "list at least one value"),
  "rate of text": ({"learning_rate": "fast"}, "'fast' is no finite number"),
  "rate below 0": ({"learning_rate": [0.1, -1.0]}, "learning_rate"),
  "loss of a matrix": ({"loss": lambda logits, y: logits}, "a number for each"),
  "loss that fails": (
    {"loss": lambda logits, y: logits + jnp.zeros(7)},
    "loss fails: ",
  ),
  "init of nothing": (
    {"init": lambda key, shapes: {}},
    "init gives other parameters than dnn:5-3 has",
  ),
  "unknown init": ({"init": "he"}, "--init=he is not one of he_normal"),
  "no more epochs": ({"start": by_lamb}, "counts the 2 epochs that start has"),
  "other seeds": (
    {"start": by_lamb, "num_epochs": 3, "num_seeds": 3},
    r"trained with seeds=\[0, 1\], asked for is \[0, 1, 2\]",
  ),
  "other recipe": (
    {"start": by_lamb, "num_epochs": 3, "batch_size": 4},
    "trained with batch_size=8, asked for is 4",
  ),
  "other optimizer": (
    {"start": by_lamb, "num_epochs": 3, "tx": optax.sgd},
    "start holds the state of another optimizer",
  ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_trained_is_named(case):
  given, message = WRONG[case]
  given = dict(given)
  if "start" in given:
    given["start"] = given["start"]()
    recipe = {"tx": lamb, "schedule": "constant", "learning_rate": 0.01}
    given = recipe | given
  with pytest.raises(ValueError, match=message):
    train(**given)
