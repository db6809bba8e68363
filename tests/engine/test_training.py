"""Training of one network: keys, order, rates, start, step, the one program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from minarch_jax import models, random
from minarch_jax.architectures import Architecture, Problem
from minarch_jax.config import Config
from minarch_jax.engine import evaluation, training
from minarch_jax.random import Purpose
from minarch_jax.types import Batch, TrainState
from tests.engine import scores

SHAPE, CLASSES = (4, 4, 1), 3
OPTIMIZERS = ("adam", "adamw", "sgd")
MODEL = models.make_model(
  Architecture.parse("dnn:5-4"), Problem(SHAPE, CLASSES)
)


def split(count, seed=0):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(count, *SHAPE)).astype(np.float32)
  return Batch(x, rng.integers(CLASSES, size=count).astype(np.int32))


def tx_of(optimizer):
  return training.make_tx(Config(optimizer=optimizer, weight_decay=0.05))


@functools.cache
def initial(seed):
  return jax.jit(MODEL.init)(random.key_for(seed, Purpose.INIT))


def begin(optimizer="adam", seed=0):
  params = jax.tree.map(
    lambda leaf: leaf, initial(seed)
  )  # nodes may be changed
  return TrainState(params, tx_of(optimizer).init(params))


def all_ones(params):
  return jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), params)


def some_zeros(params, seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda leaf: rng.random(leaf.shape) < 0.6, params)


def assert_trees_close(found, expected, **tolerance):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, **tolerance), found, expected
  )


# --- keys and order ----------------------------------------------------------


def test_keys_are_named_by_seed_and_purpose():
  pairs = [(s, p) for s in range(4) for p in (Purpose.INIT, Purpose.PRUNE)]
  keys = [jax.random.key_data(random.key_for(*pair)) for pair in pairs]
  assert len(np.unique(keys, axis=0)) == len(pairs)
  traced = jax.jit(lambda seed: random.key_for(seed, Purpose.PRUNE))(3)
  np.testing.assert_array_equal(jax.random.key_data(traced), keys[-1])


@pytest.mark.parametrize("count, size", [(20, 4), (23, 4), (5, 5), (7, 1)])
def test_an_epoch_is_a_permutation_cut_into_full_batches(count, size):
  order = training.data_order(3, 1, count, size)
  assert order.shape == (count // size, size) and order.dtype == np.int32
  seen = order.ravel()
  assert len(np.unique(seen)) == len(seen)
  assert seen.min() >= 0 and seen.max() < count


def test_the_order_depends_on_seed_and_epoch_only():
  drawn = {
    (seed, epoch): training.data_order(seed, epoch, 50, 5).tobytes()
    for seed in range(3)
    for epoch in range(3)
  }
  assert len(set(drawn.values())) == len(drawn)
  for (seed, epoch), expected in drawn.items():
    assert training.data_order(seed, epoch, 50, 5).tobytes() == expected


def test_the_order_of_images_does_not_depend_on_the_batch():
  fine = training.data_order(0, 0, 23, 2).ravel()
  coarse = training.data_order(0, 0, 23, 7).ravel()
  np.testing.assert_array_equal(coarse, fine[: len(coarse)])


def test_the_order_stays_what_it_was():
  # Golden: records are compared across versions, so it may change only
  # together with records.SCHEMA_VERSION.
  order = training.data_order(7, 2, 9, 3)
  assert order.tolist() == [[1, 7, 5], [6, 4, 8], [2, 3, 0]]


# --- learning rates ----------------------------------------------------------


def test_a_constant_rate():
  rates = training.learning_rates(
    Config(schedule="constant", learning_rate=0.01), 5
  )
  np.testing.assert_array_equal(rates, np.full(5, 0.01, np.float32))


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("steps", [1, 2, 40, 1000])
def test_a_cosine_rises_to_its_peak_and_falls_towards_zero(warmup, steps):
  config = Config(schedule="cosine", learning_rate=0.02, warmup_fraction=warmup)
  rates = training.learning_rates(config, steps)
  assert rates.shape == (steps,) and rates.dtype == np.float32
  assert np.isfinite(rates).all() and (rates > 0).all()
  rising = int(warmup * steps)
  np.testing.assert_allclose(rates.max(), 0.02, rtol=1e-6)
  assert rates[rising] == rates.max()
  assert (np.diff(rates[: rising + 1]) > 0).all() or rising == 1
  assert (np.diff(rates[rising:]) < 0).all()
  if steps == 1000:
    assert rates[-1] < 0.02 * 1e-3
    middle = rates[(rising + steps) // 2]
    np.testing.assert_allclose(middle, 0.01, rtol=0.01)


# --- the step ----------------------------------------------------------------

REFERENCES = {
  "adam": lambda rate: optax.adam(rate),
  "adamw": lambda rate: optax.adamw(rate, weight_decay=0.05),
  "sgd": lambda rate: optax.chain(
    optax.add_decayed_weights(0.05), optax.sgd(rate, momentum=0.9)
  ),
}


def mean_loss(params, batch):
  logits = MODEL.apply(params, batch.x, {})
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.y)
  return losses.mean()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps_are_those_of_optax(optimizer):
  step = jax.jit(training.make_step(MODEL, tx_of(optimizer)))
  state = begin(optimizer)
  params = state.params
  tx = REFERENCES[optimizer](0.01)
  opt_state = tx.init(params)

  @jax.jit
  def reference(params, opt_state, batch):
    loss, grads = jax.value_and_grad(mean_loss)(params, batch)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss

  masks = all_ones(params)
  for i in range(5):
    batch = split(8, seed=i)
    logits = MODEL.apply(state.params, batch.x, {})
    state, found = step(state, batch, 0.01, {}, masks)
    params, opt_state, loss = reference(params, opt_state, batch)
    # The step reports the loss of the parameters it started from.
    np.testing.assert_allclose(found.loss, loss, rtol=1e-5)
    hits = (np.argmax(logits, 1) == batch.y).mean()
    np.testing.assert_allclose(found.accuracy, hits, rtol=1e-6)
    assert_trees_close(state.params, params, rtol=1e-4, atol=1e-6)


def test_a_registered_optimizer_has_a_reference():
  choices = Config.__dataclass_fields__["optimizer"].metadata["rules"]
  assert set(choices["choices"]) == REFERENCES.keys() == set(OPTIMIZERS)
  with pytest.raises(ValueError, match="unknown optimizer 'lion'"):
    training.make_tx(Config(optimizer="lion"))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("bad", [None, np.nan, np.inf])
def test_masked_parameters_stay_exactly_zero(optimizer, bad):
  step = jax.jit(training.make_step(MODEL, tx_of(optimizer)))
  state = begin(optimizer)
  masks = some_zeros(state.params)
  params = jax.tree.map(jnp.multiply, state.params, masks)
  if bad is not None:  # one live weight is beyond repair
    kernel = params["hidden_0"]["kernel"]
    place = np.argwhere(masks["hidden_0"]["kernel"])[0]
    params["hidden_0"]["kernel"] = kernel.at[tuple(place)].set(bad)
  state = TrainState(params, state.opt_state)
  before = jax.tree.map(np.asarray, params)
  for i in range(4):
    state, _ = step(state, split(8, seed=i), 0.05, {}, masks)
    for value, mask in zip(
      jax.tree.leaves(state.params), jax.tree.leaves(masks), strict=True
    ):
      assert not np.asarray(value)[~mask].any()
  if bad is None:
    moved = jax.tree.map(lambda a, b: (a != b)[...], state.params, before)
    for change, mask in zip(
      jax.tree.leaves(moved), jax.tree.leaves(masks), strict=True
    ):
      # A dead ReLU may hold single weights still.
      assert np.asarray(change)[mask].mean() > 0.5
  else:
    assert any(np.isnan(leaf).any() for leaf in jax.tree.leaves(state.params))


def test_scalar_masks_prune_nothing():
  step = jax.jit(training.make_step(MODEL, tx_of("adam")))
  state, batch = begin(), split(8)
  ones = jax.tree.map(lambda leaf: np.array(True), state.params)
  found, _ = step(state, batch, 0.01, {}, ones)
  expected, _ = step(state, batch, 0.01, {}, all_ones(state.params))
  assert_trees_close(found.params, expected.params, rtol=1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizers_start_at_zero(optimizer):
  tx = tx_of(optimizer)
  params = jax.tree.map(lambda *s: np.stack(s), *map(initial, range(2)))
  params = jax.tree.map(lambda leaf: np.stack([leaf] * 3, 1), params)
  settings = Config(optimizer=optimizer, weight_decay=0.05)
  found = training.start_state(training.Optimizer.of(settings), params)
  expected = jax.vmap(jax.vmap(tx.init))(params)
  assert found.params is params
  assert jax.tree.structure(found.opt_state) == jax.tree.structure(expected)
  for a, b in zip(
    *map(jax.tree.leaves, (found.opt_state, expected)), strict=True
  ):
    assert isinstance(a, np.ndarray) and a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)
    assert not a.any()


# --- the program of a pack ---------------------------------------------------

NUM_TRAIN, BATCH = 23, 4
STEP = training.make_step(MODEL, tx_of("adam"))
VALIDATION, TEST = (split(count, count) for count in (10, 7))
PARTS = [evaluation.chunk(b, 4) for b in (split(NUM_TRAIN), VALIDATION, TEST)]
CHUNKS = jax.tree.map(lambda *parts: np.concatenate(parts), *PARTS)
PLACES = np.arange(11)
OF_VALIDATION, OF_TEST, OF_BOTH = (6, 9), (9, 11), (6, 11)  # of eleven chunks
TOTALS = evaluation.make_totals(MODEL.apply)
RUN = jax.jit(training.make_run(STEP, TOTALS, OF_VALIDATION))


def run(state, count, first=0, *, steps=5, rates=0.02, final=OF_TEST):
  """Runs `count` of three epochs, numbered from `first`; scores the test."""
  order = np.stack(
    [training.data_order(0, first + e, NUM_TRAIN, BATCH) for e in range(3)]
  )
  rate = np.full(order.shape[:2], rates, np.float32)
  lesson = training.Lesson(np.int32(count), np.int32(steps), order, rate)
  final = tuple(map(np.int32, final))
  return RUN(state, lesson, {}, all_ones(state.params), CHUNKS, PLACES, final)


def assert_same(found, expected):
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_epochs_are_a_loop_over_steps_and_an_exact_score():
  state, curve, totals = run(begin(), 3)
  step = jax.jit(STEP)
  evaluate = jax.jit(scores.make_evaluate(MODEL.apply))
  train, validation = split(NUM_TRAIN), evaluation.chunk(VALIDATION, 4)
  expected = begin()
  for epoch in range(3):
    seen = []
    for batch in training.data_order(0, epoch, NUM_TRAIN, BATCH):
      expected, found = step(
        *(expected, Batch(train.x[batch], train.y[batch]), 0.02, {}),
        all_ones(expected.params),
      )
      seen.append(found)
    score = evaluate(expected.params, validation, {})
    np.testing.assert_allclose(
      curve.train.loss[epoch], np.mean([s.loss for s in seen]), rtol=1e-4
    )
    np.testing.assert_allclose(
      curve.train.accuracy[epoch],
      np.mean([s.accuracy for s in seen]),
      rtol=1e-5,
    )
    np.testing.assert_allclose(
      curve.validation.loss[epoch], score.loss, rtol=1e-4
    )
    assert curve.validation.correct[epoch] == score.correct
  assert_trees_close(state.params, expected.params, rtol=1e-4, atol=1e-5)
  assert curve.train.loss[2] < curve.train.loss[0]
  # In the end the last two chunks are scored, and no others.
  score = evaluate(expected.params, evaluation.chunk(TEST, 4), {})
  np.testing.assert_allclose(totals.loss.sum() / 7, score.loss, rtol=1e-4)
  assert totals.hits.sum() == score.correct
  assert (np.asarray(totals.loss).sum(-1) > 0).tolist() == [False] * 9 + [
    True
  ] * 2


def test_only_the_first_epochs_are_run():
  _, whole, _ = run(begin(), 3)
  _, part, _ = run(begin(), 2)
  for a, b in zip(jax.tree.leaves(part), jax.tree.leaves(whole), strict=True):
    np.testing.assert_array_equal(a[:2], b[:2])
    assert not np.asarray(a)[2:].any()


def test_only_the_first_steps_of_an_epoch_are_run():
  short, curve, _ = run(begin(), 1, steps=2)
  train, expected, seen = split(NUM_TRAIN), begin(), []
  for batch in training.data_order(0, 0, NUM_TRAIN, BATCH)[:2]:
    expected, found = jax.jit(STEP)(
      *(expected, Batch(train.x[batch], train.y[batch]), 0.02, {}),
      all_ones(expected.params),
    )
    seen.append(found.loss)
  assert_trees_close(short, expected, rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(curve.train.loss[0], np.mean(seen), rtol=1e-5)


def test_no_epochs_only_score():
  trained, curve, totals = run(begin(), 3, final=OF_BOTH)
  state, none, again = run(trained, 0, final=OF_BOTH)
  assert_same(state, trained)
  assert_same(again, totals)
  assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(none))
  # The exact score of the last epoch is that of its final network.
  assert curve.validation.correct[2] == totals.hits[6:9].sum()
  np.testing.assert_allclose(
    curve.validation.loss[2], totals.loss[6:9].sum() / 10, rtol=1e-6
  )


def test_what_is_scored_changes_no_training():
  scored, unscored = run(begin(), 3), run(begin(), 3, final=(0, 0))
  assert_same(unscored[:2], scored[:2])
  assert not any(np.asarray(leaf).any() for leaf in unscored[2])


def test_epochs_in_two_calls_are_epochs_in_one():
  state, curve, totals = run(begin(), 3)
  half, first, _ = run(begin(), 2, final=(0, 0))
  found, second, last = run(half, 1, first=2)
  assert_same(found, state)
  assert_same(last, totals)
  for whole, a, b in zip(
    *(jax.tree.leaves(c) for c in (curve, first, second)), strict=True
  ):
    np.testing.assert_array_equal(whole, [*a[:2], b[0]])


def test_a_network_that_diverges_goes_on_as_data():
  state, curve, totals = run(begin(), 3, rates=1e30)
  assert not np.isfinite(curve.train.loss[-1])
  assert not np.isfinite(curve.validation.loss[-1])
  assert curve.validation.correct[-1] == 0
  assert not np.isfinite(totals.loss[9:]).any() and not totals.hits.any()
  leaves = jax.tree.leaves(state.params)
  assert not all(np.isfinite(leaf).all() for leaf in leaves)


# --- a minibatch in parts ----------------------------------------------------


def test_microbatches_add_up_to_the_minibatch():
  state, batch = begin(), split(8)
  masks = some_zeros(state.params)
  expected, *found = (
    jax.jit(training.make_step(MODEL, tx_of("adam"), microbatch=size))(
      state, batch, 0.01, {}, masks
    )
    for size in (None, 1, 4, 8)
  )
  for each in found:
    assert_trees_close(each, expected, rtol=1e-4, atol=1e-6)


def test_one_bad_image_spoils_the_mean_of_all_microbatches():
  state, batch = begin(), split(8)
  batch.x[5, 0, 0, 0] = np.inf
  step = jax.jit(training.make_step(MODEL, tx_of("adam"), microbatch=2))
  _, seen = step(state, batch, 0.01, {}, all_ones(state.params))
  assert not np.isfinite(seen.loss) and 0 <= seen.accuracy < 1


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_averaged_gradients_of_parts_are_those_of_the_whole(optimizer):
  whole = jax.jit(training.make_step(MODEL, tx_of(optimizer)))
  parted = jax.vmap(
    training.make_step(MODEL, tx_of(optimizer), "parts"),
    (None, 0, None, None, None),
    axis_name="parts",
  )
  state, batch = begin(optimizer), split(8)
  masks = some_zeros(state.params)
  parts = jax.tree.map(lambda leaf: leaf.reshape(2, 4, *leaf.shape[1:]), batch)
  expected = whole(state, batch, 0.01, {}, masks)
  found = jax.jit(parted)(state, parts, 0.01, {}, masks)
  for i in range(2):  # every device holds the same network
    assert_trees_close(
      jax.tree.map(lambda leaf, i=i: leaf[i], found),
      expected,
      rtol=1e-4,
      atol=1e-6,
    )
