"""Networks of one's own: a sweep is a loop over what it trains, and resumes."""

import dataclasses
import functools
import operator
import os
from unittest import mock

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import minarch_jax as ma
from minarch_jax.engine import population, training
from minarch_jax.stages import own, own_sweeps
from tests import made_up
from tests.made_up import CLASSES, SHAPE

SEEDS = [0, 1, 4]
SWEEP = {"learning_rate": [1e-2, 3e-2], "weight_decay": [0, 1e-2]}
OPTIONS = {"num_epochs": 4, "batch_size": 8, "compilation_cache_dir": ""}
HIDDEN = 5


def tx(learning_rate, weight_decay):
  return optax.adamw(learning_rate, weight_decay=weight_decay)


# --- three kinds of networks -------------------------------------------------


def plain(key):
  first, second = jax.random.split(key)
  return {
    "w": 0.3 * jax.random.normal(first, (16, HIDDEN)),
    "b": jnp.zeros(HIDDEN),
    "v": 0.3 * jax.random.normal(second, (HIDDEN, CLASSES)),
  }


def apply_plain(params, x):
  hidden = x.reshape(len(x), -1) @ params["w"]
  return nn.relu(hidden + params["b"][None]) @ params["v"]


class Linen(nn.Module):
  @nn.compact
  def __call__(self, x):
    dense = functools.partial(nn.Dense, param_dtype=jnp.result_type(float))
    x = nn.relu(dense(HIDDEN)(x.reshape(len(x), -1)))
    return dense(CLASSES)(x)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Record:
  weight: jax.Array
  scale: jax.Array

  def __call__(self, x):
    return (x.reshape(len(x), -1) @ self.weight) * self.scale


def record(key):
  return Record(0.3 * jax.random.normal(key, (16, CLASSES)), jnp.ones(()))


KINDS = {
  "dict": (plain, apply_plain),
  "linen": (
    lambda key: Linen().init(key, jnp.zeros((1, *SHAPE))),
    Linen().apply,
  ),
  "dataclass": (record, lambda params, x: params(x)),
}


def loss_of(apply):
  def loss(params, batch):
    logits = apply(params, batch.x)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.y)
    return losses.mean(), {"accuracy": (logits.argmax(1) == batch.y).mean()}

  return loss


LOSS = loss_of(apply_plain)


@functools.cache
def dataset():
  return made_up.dataset(52, 13, 11, spread=0.5)


def train(init=plain, loss=LOSS, tx=tx, data=None, **changes):
  options = {"seeds": SEEDS, "sweep": SWEEP, **OPTIONS, **changes}
  if "start" in options:
    del options["seeds"], options["sweep"]
  return ma.train_many(init, loss, tx, data or dataset(), **options)


@functools.cache
def straight():
  return train()


def assert_same(found, expected):
  assert jax.tree.structure(found.state) == jax.tree.structure(expected.state)
  jax.tree.map(
    np.testing.assert_array_equal,
    (found.state, found.curve),
    (expected.state, expected.curve),
  )
  assert found.combinations == expected.combinations
  assert found.seeds == expected.seeds


# --- laws --------------------------------------------------------------------


def alone(init, loss, tx, seed, num_epochs=4):
  """The plain loop that anybody would write."""
  train, held = dataset().of_seed(seed)
  params = init(jax.random.fold_in(jax.random.key(seed), 0))
  opt_state, rows = tx.init(params), []
  gradient = jax.value_and_grad(loss, has_aux=True)
  for epoch in range(num_epochs):
    seen = []
    for index in training.data_order(seed, epoch, len(train.y), 8):
      batch = ma.Batch(train.x[index], train.y[index])
      (value, metrics), grads = gradient(params, batch)
      updates, opt_state = tx.update(grads, opt_state, params)
      params = optax.apply_updates(params, updates)
      seen.append([value, metrics["accuracy"]])
    value, metrics = loss(params, held)
    rows.append([*np.mean(seen, axis=0), value, metrics["accuracy"]])
  return params, np.array(rows)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sweep_is_a_loop_over_what_it_trains(kind):
  init, apply = KINDS[kind]
  loss = loss_of(apply)
  with jax.enable_x64(True):
    found = train(init, loss)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6)
    for c, s in [(0, 0), (1, 2), (3, 1)]:  # the loop is not compiled
      own = tx(**found.combinations[c])
      params, rows = alone(init, loss, own, SEEDS[s])
      trained = jax.tree.map(operator.itemgetter((c, s)), found.params)
      jax.tree.map(close, trained, params)
      curve = found.curve
      columns = [curve.train["loss"], curve.train["accuracy"]]
      columns += [curve.validation["loss"], curve.validation["accuracy"]]
      close(np.stack([each[c, s] for each in columns], axis=1), rows)


@pytest.mark.parametrize(
  "layout",
  [
    {"seed_mapping": "vmap", "member_mapping": "vmap"},
    {"seed_mapping": "map", "member_mapping": "map"},
    {"device_map": "pmap"},
    {"memory_limit": 250e3 / 2**30},
  ],
  ids=str,
)
def test_every_layout_gives_the_same(layout):
  with jax.enable_x64(True):
    found = train(**layout)
    expected = train()
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-7, atol=1e-12),
    (found.state, found.curve),
    (expected.state, expected.curve),
  )


def test_one_device_is_eight():
  assert len(jax.local_devices()) == 8
  with jax.enable_x64(True):
    eight = train()
    one = jax.local_devices()[:1]
    with mock.patch.object(jax, "local_devices", lambda: one):
      found = train()
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-7, atol=1e-12),
    (found.state, found.curve),
    (eight.state, eight.curve),
  )


def programs(**changes):
  """Trains, and counts the programs of training."""
  compiled = []
  compile = population.compile

  def counted(function, kinds, *arguments, **options):
    compiled.append(kinds)
    return compile(function, kinds, *arguments, **options)

  with mock.patch.object(population, "compile", counted):
    found = train(**changes)
  return sum("order" in kinds for kinds in compiled), found


def test_a_sweep_is_one_program_also_in_groups():
  assert programs()[0] == 1
  made = []
  place = own.own.place

  def placed(*arguments):
    made.append(arguments[2])
    return place(*arguments)

  with mock.patch.object(own.own, "place", placed):
    count, found = programs(memory_limit=150e3 / 2**30)
  assert count == 1 and len(made) > 1 and len(set(made)) == 1
  assert found.combinations == straight().combinations


def test_a_seed_sees_what_it_sees_in_train():
  """The rows of folds, in the order of packs."""
  data = ma.load("digits", folds=5)
  for seed in (0, 3, 7):
    mine, held = data.of_seed(seed)
    examples = own.own_checks.examples(data, 64)
    rows = examples.order(seed, 2, 64)
    index = training.data_order(seed, 2, len(mine.y), 64)[: len(rows)]
    np.testing.assert_array_equal(examples.all.x[rows], mine.x[index])
    parts = examples.parts(seed)
    counted = [
      part.rows[i] for part in parts for i in np.flatnonzero(part.wanted)
    ]
    counted = np.concatenate(counted)
    np.testing.assert_array_equal(examples.all.x[counted], held.x)
    np.testing.assert_array_equal(examples.all.y[counted], held.y)
  shapes = {
    str(jax.tree.map(np.shape, examples.parts(seed))) for seed in range(5)
  }
  assert len(shapes) == 1


# --- dropout -----------------------------------------------------------------


def dropping(params, batch, key=None):
  """Drops half of the inputs; says what it drew, 0 where it is scored."""
  kept = (
    jnp.ones(batch.x.shape)
    if key is None
    else 2.0 * (jax.random.bernoulli(key, 0.5, batch.x.shape))
  )
  loss, metrics = LOSS(params, batch._replace(x=batch.x * kept))
  drawn = 0.0 if key is None else jax.random.uniform(key)
  return loss, metrics | {"drawn": drawn}


@functools.cache
def dropped():
  return train(loss=dropping)


def test_a_loss_that_draws_gets_another_key_at_every_step_and_none_later():
  """One key for the combinations of a seed; not that of a seed beside it."""
  curve = dropped().curve
  assert not curve.validation["drawn"].any()
  drawn = curve.train["drawn"]
  np.testing.assert_array_equal(drawn, np.broadcast_to(drawn[:1], drawn.shape))
  assert len(np.unique(drawn[0])) == drawn[0].size
  steps = len(dataset().of_seed(SEEDS[1])[0].y) // 8

  def uniform(epoch, step):
    key = jax.random.fold_in(jax.random.key(SEEDS[1]), 5)
    key = jax.random.fold_in(jax.random.fold_in(key, epoch), step)
    return jax.random.uniform(key)

  expected = [np.mean([uniform(2, t) for t in range(steps)])]
  np.testing.assert_allclose(drawn[0, 1, 2], expected, rtol=1e-6)


def test_what_is_drawn_does_not_depend_on_where_a_run_was_interrupted():
  assert_same(
    train(loss=dropping, start=train(loss=dropping, num_epochs=1)), dropped()
  )


# --- going on ----------------------------------------------------------------


def test_continued_is_straight_through():
  found = train(start=train(num_epochs=1))
  assert_same(found, straight())


def test_saved_and_loaded_is_the_same(tmp_path):
  straight().save(str(tmp_path))
  assert_same(ma.load_sweep(str(tmp_path), plain, tx), straight())


def test_a_dataclass_is_saved_too(tmp_path):
  init, apply = KINDS["dataclass"]
  found = train(init, loss_of(apply), optax.sgd(0.1), sweep=None, num_epochs=1)
  found.save(str(tmp_path))
  back = ma.load_sweep(str(tmp_path), init, optax.sgd(0.1))
  assert isinstance(back.params, Record)
  assert_same(back, found)


class Interrupted:
  """Stops after so many calls, as Ctrl-C does."""

  def __init__(self, calls):
    self.left, self.keep = calls, own_sweeps.keep

  def __call__(self, *arguments):
    self.keep(*arguments)
    self.left -= 1
    if not self.left:
      raise KeyboardInterrupt


@pytest.mark.parametrize("calls", [1, 3, 4, 6])
@pytest.mark.parametrize("limit", [0.0, 150e3 / 2**30])
def test_interrupted_and_resumed_is_straight_through(
  calls, limit, tmp_path, capsys
):
  options = {"out": str(tmp_path), "memory_limit": limit}
  with (
    mock.patch.object(own.sessions, "CALL_SECONDS", 0.0),
    mock.patch.object(own_sweeps, "keep", Interrupted(calls)) as stop,
  ):
    if calls <= 4 or limit:
      with pytest.raises(KeyboardInterrupt):
        train(**options)
      assert "the same call goes on" in capsys.readouterr().err
    else:
      train(**options)
  assert stop.left <= 2
  expected = train(memory_limit=limit)

  # A function of its own, as a script that is started anew has.
  def again(params, batch):
    return LOSS(params, batch)

  assert_same(train(loss=again, **options), expected)
  names = os.listdir(tmp_path / "checkpoints")
  assert all(name.endswith("-4") for name in names)


def test_a_finished_run_trains_nothing_and_a_longer_one_goes_on(tmp_path):
  train(num_epochs=2, out=str(tmp_path))
  count, found = programs(num_epochs=2, out=str(tmp_path))
  assert count == 0 and found.epochs == 2
  assert_same(train(out=str(tmp_path)), straight())
  with pytest.raises(ValueError, match="counts the 4 epochs that .* holds"):
    train(num_epochs=3, out=str(tmp_path))


def test_another_loss_is_another_run(tmp_path):
  train(num_epochs=1, out=str(tmp_path))

  def other(params, batch):
    return 2 * LOSS(params, batch)[0]

  count, found = programs(loss=other, num_epochs=1, out=str(tmp_path))
  assert count == 1 and set(found.curve.train) == {"loss"}


# --- what comes out ----------------------------------------------------------


def test_the_curves_are_a_table():
  found = straight()
  curves = found.curves
  assert curves.columns == [
    *("seed", "learning_rate", "weight_decay", "epoch", "train_loss"),
    *("validation_loss", "train_accuracy", "validation_accuracy"),
  ]
  assert len(curves) == 4 * 3 * 4
  row = curves.filter(seed=4, learning_rate=3e-2, weight_decay=0, epoch=2)
  assert row["train_loss"].item() == found.curve.train["loss"][2, 2, 1]
  assert found.params["w"].shape == (4, 3, 16, HIDDEN)
  first, last = (curves.filter(epoch=e)["train_loss"].mean() for e in (1, 4))
  assert last < first


def test_a_diverged_network_is_data_and_leaves_the_others_alone():
  rates = [1e-2, 1e38]
  found = train(tx=optax.sgd, sweep={"learning_rate": rates})
  last = found.curves.filter(epoch=4)
  bad = last.filter(learning_rate=1e38)
  assert bad["train_loss"].is_nan().all()
  good = train(tx=optax.sgd, sweep={"learning_rate": rates[:1]})
  np.testing.assert_allclose(
    found.curve.train["loss"][0], good.curve.train["loss"][0], rtol=1e-4
  )


def test_any_examples_can_be_learnt_from():
  """Regression on vectors; the curves of a plain loss have no metric."""
  x = np.random.default_rng(0).normal(size=(40, 3))
  y = x @ np.array([1.0, -2.0, 0.5])
  found = train(
    lambda key: jnp.zeros(3),
    lambda w, batch: ((batch.x @ w - batch.y) ** 2).mean(),
    optax.sgd(0.1),
    ((x[:32], y[:32]), (x[32:], y[32:])),
    sweep=None,
    num_epochs=20,
  )
  assert found.curves.columns == [
    *("seed", "epoch", "train_loss", "validation_loss")
  ]
  np.testing.assert_allclose(found.params[0, 0], [1.0, -2.0, 0.5], atol=1e-2)


# --- what cannot be ----------------------------------------------------------


def decides(learning_rate):
  return optax.sgd(0.1) if learning_rate > 0.1 else optax.adam(0.1)


def growing():
  sizes = iter(range(1, 99))
  return lambda key: jnp.zeros(next(sizes))


def with_nan():
  data = dataset()
  x = np.array(data.train.x)
  x[7] = np.nan
  return (x, data.train.y), data.validation


RATE = {"learning_rate": [0.1]}
WRONG = {
  "scalar": ({"loss": lambda p, b: b.x.sum((1, 2, 3))}, "one number"),
  "real": ({"loss": lambda p, b: b.y.sum()}, "slope"),
  "aux": ({"loss": lambda p, b: (p["w"].sum(), 1.0)}, "dictionary"),
  "metric": ({"loss": lambda p, b: (p["w"].sum(), {"a": b.y})}, "metric 'a'"),
  "decides": ({"tx": decides, "sweep": RATE}, "decides by a value"),
  "finished": ({"tx": optax.sgd(0.1)}, "finished optimizer"),
  "names": ({"tx": optax.sgd, "sweep": {"rate": [1]}}, "the same names"),
  "missing": ({"tx": optax.sgd, "sweep": None}, "the same names"),
  "no tx": ({"tx": 3}, "pass an optax optimizer"),
  "no values": ({"tx": optax.sgd, "sweep": {"learning_rate": []}}, "at least"),
  "text": ({"tx": optax.sgd, "sweep": {"learning_rate": ["a"]}}, "finite"),
  "one": ({"tx": optax.sgd, "sweep": {"learning_rate": 0.1}}, "list its"),
  "column": ({"sweep": {"epoch": [1]}}, "column of that name"),
  "impure": ({"init": growing()}, "other shapes at its second call"),
  "integers": ({"init": lambda key: {"w": jnp.zeros(2, int)}}, "'w' is int32"),
  "nothing": ({"init": lambda key: {}}, "no array"),
  "no seed": ({"seeds": []}, "seeds is empty"),
  "twice": ({"seeds": [1, 1]}, "once"),
  "negative": ({"seeds": [-1]}, "whole number"),
  "batch": ({"batch_size": 53}, "more than the 52 training"),
  "nan": ({"data": with_nan()}, "1 of 52 examples is NaN .* the first at 7"),
  "lengths": ({"data": ((np.ones((4, 1)), np.ones(3)),) * 2}, "one row for"),
  "no data": ({"data": 3}, "pair of batches"),
  "option": ({"num_epoch": 3}, "did you mean 'num_epochs'"),
  "not here": ({"optimizer": "adam"}, "unknown option"),
  "memory": ({"memory_limit": 1e-6}, "need more than"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_said_before_anything_compiles(name):
  changes, message = WRONG[name]
  with mock.patch.object(population, "compile", side_effect=AssertionError):
    with pytest.raises(ValueError, match=message):
      train(**changes)


def test_what_cannot_go_on_is_named(tmp_path):
  short = train(num_epochs=1)
  with pytest.raises(ValueError, match="counts the 1 epochs"):
    train(start=short, num_epochs=1)
  with pytest.raises(ValueError, match="give one"):
    train(start=short, out=str(tmp_path))
  with pytest.raises(ValueError, match="leave seeds out"):
    ma.train_many(plain, LOSS, tx, dataset(), seeds=[9], start=short, **OPTIONS)
  with pytest.raises(ValueError, match=r"another init or tx.*momentum|mu"):
    train(
      tx=lambda learning_rate, weight_decay: optax.sgd(learning_rate),
      start=short,
    )
  short.save(str(tmp_path))
  with pytest.raises(ValueError, match="another init or tx"):
    ma.load_sweep(str(tmp_path), record, tx)
  with pytest.raises(FileNotFoundError, match="no sweep was saved"):
    ma.load_sweep(str(tmp_path / "none"), plain, tx)


def test_a_damaged_run_is_named_not_trained_over(tmp_path):
  train(num_epochs=1, out=str(tmp_path))
  for path in tmp_path.rglob("*"):
    if path.is_file():
      path.write_bytes(path.read_bytes()[:-7])
  with pytest.raises(ValueError, match="delete it and train anew"):
    train(out=str(tmp_path))
