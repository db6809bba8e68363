"""Packs: a network in a pack is the network alone, wherever and however run."""

import dataclasses
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minarch_jax import models, random
from minarch_jax.architectures import Problem
from minarch_jax.engine import costs, evaluation, packs, training
from minarch_jax.engine import session as sessions
from minarch_jax.random import Purpose
from minarch_jax.types import Batch
from tests.engine.small_packs import (
  CONFIG,
  dataset,
  folded,
  pack_of,
  PACKS,
  parse,
  SEEDS,
  session,
)
from tests.made_up import CLASSES, SHAPE


def on_devices(count):
  """Lets the engine see the first devices only."""
  devices = jax.local_devices()[:count]
  return mock.patch.object(jax, "local_devices", lambda: devices)


def train(pack, config=CONFIG, devices=8):
  with on_devices(devices):
    return packs.train(sessions.open_session(config, dataset()), pack)


@functools.cache
def reference(family):
  """A pack as trained on eight devices, and what was carried in its parent."""
  return watched(lambda: packs.train(session(), pack_of(family)))


def watched(run):
  split = packs.split_members
  with mock.patch.object(packs, "split_members", wraps=split) as seen:
    trained = run()
  return trained, seen.call_args.args[0]


@pytest.fixture
def quick_compilation(skip_optimizations):
  """For what trains a moment and is compared with float64's precision."""
  skip_optimizations(True)


def results(trained):
  """What rounding moves little: the hits of a dead network hang on ties."""
  losses = trained.curve.train.loss, trained.curve.validation.loss
  final = [score.loss for score in trained.scores]
  return list(map(comparable, trained.params)), losses, final


def comparable(params):
  """Leaves out key biases: softmax ignores them, Adam blows up their noise."""
  return {
    path: leaf
    for path, leaf in models.flatten(params).items()
    if path[-2:] != ("key", "bias")
  }


def assert_close(found, expected, tolerance):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=tolerance, atol=tolerance
    ),
    found,
    expected,
  )


# --- packing invariance ------------------------------------------------------


@functools.cache
def init_of(text):
  return jax.jit(models.make_model(parse(text), Problem(SHAPE, CLASSES)).init)


@functools.cache
def slope_of(text):
  """Loss and gradient of one network."""
  model = models.make_model(parse(text), Problem(SHAPE, CLASSES))

  def loss(params, batch):
    logs = jax.nn.log_softmax(model.apply(params, batch.x))
    return -jnp.take_along_axis(logs, batch.y[:, None], 1).mean()

  return jax.jit(jax.value_and_grad(loss))


@functools.cache
def rule_of(config):
  """How an optimizer starts and what it makes of gradients."""
  tx = training.make_tx(config)
  return jax.jit(tx.init), jax.jit(tx.update)


def trained_by_hand(text, seed, config):
  """One network and its curve of training losses, step after step."""
  params = jax.device_get(init_of(text)(random.key_for(seed, Purpose.INIT)))
  slope, (start, update) = slope_of(text), rule_of(config)
  opt_state = start(params)
  train = dataset().train
  orders = [
    training.data_order(seed, epoch, len(train.y), config.batch_size)
    for epoch in range(config.num_epochs)
  ]
  rates = training.learning_rates(config, sum(map(len, orders)))
  losses = []
  for rate, indices in zip(rates, np.concatenate(orders), strict=True):
    loss, grads = slope(params, Batch(train.x[indices], train.y[indices]))
    losses.append(loss)
    updates, opt_state = update(grads, opt_state, params)
    params = jax.tree.map(
      lambda p, u, rate=rate: p - rate * np.asarray(u), params, updates
    )
  return params, np.reshape(losses, (config.num_epochs, -1)).mean(1)


def check_invariance(trained, stacked, config, tolerance):
  pack = trained.pack
  for i, a in enumerate(pack.architectures):
    for j, seed in enumerate(pack.seeds):
      params, losses = trained_by_hand(str(a), seed, config)
      found = jax.tree.map(lambda leaf, j=j: leaf[j], trained.params[i])
      assert_close(comparable(found), comparable(params), tolerance)
      assert_close(trained.curve.train.loss[j, i], losses, tolerance)
  # What training carried outside the members is exactly nothing.
  spec = pack.parent.spec(Problem(SHAPE, CLASSES))
  for i, a in enumerate(pack.members):
    depth = None if a.family == "cnn" else pack.parent.depth
    masks = models.width_masks(spec, a.sizes(Problem(SHAPE, CLASSES), depth))
    for leaf, mask in zip(
      jax.tree.leaves(stacked), jax.tree.leaves(masks), strict=True
    ):
      assert mask.any() or a.depth < pack.parent.depth
      assert not leaf[:, i][:, ~mask].any()


# Optimizers work on each entry alone, whatever its network.
@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize(
  "family, optimizer", [*((family, "adam") for family in PACKS), ("dnn", "sgd")]
)
def test_members_of_a_pack_are_the_networks_alone(family, optimizer):
  config = CONFIG.replace(optimizer=optimizer)
  with jax.enable_x64(True):
    found, stacked = watched(lambda: train(pack_of(family), config))
    check_invariance(found, stacked, config, 1e-10)
  assert found.params[0]["output"]["kernel"].dtype == np.float64


@pytest.mark.parametrize("family", PACKS)
def test_members_of_a_pack_are_the_networks_alone_in_float32(family):
  found, stacked = reference(family)
  check_invariance(found, stacked, CONFIG, 1e-4)
  assert found.params[0]["output"]["kernel"].dtype == np.float32


@pytest.mark.slow
@pytest.mark.parametrize("family", PACKS)
def test_sgd_in_float32(family):
  config = CONFIG.replace(optimizer="sgd")
  found, stacked = watched(lambda: train(pack_of(family), config))
  check_invariance(found, stacked, config, 1e-4)


def test_training_of_the_reference_gets_somewhere():
  for family in PACKS:
    curve = reference(family)[0].curve
    assert (curve.train.loss[..., -1] < curve.train.loss[..., 0]).mean() > 0.7


# --- initial values ----------------------------------------------------------


@pytest.mark.parametrize("family", PACKS)
def test_packs_start_from_the_initial_values_of_the_networks_alone(family):
  pack = pack_of(family)
  placed = sessions.place(session(), pack)
  found = packs.initial(placed)
  lead = {leaf.shape[:2] for leaf in jax.tree.leaves(found)}
  assert lead == {(len(placed.pack.seeds), placed.pack.slots)}
  for a, trees in zip(
    pack.architectures,
    packs.split_members(found, pack, session()),
    strict=True,
  ):
    for j, seed in enumerate(SEEDS):
      expected = init_of(str(a))(random.key_for(seed, Purpose.INIT))
      alone = jax.tree.map(lambda leaf, j=j: leaf[j], trees)
      assert jax.tree.structure(alone) == jax.tree.structure(expected)
      # Optimized, the inverse of the error function ends in other last bits.
      jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6),
        alone,
        expected,
      )


def test_new_weights_are_other_draws():
  placed = sessions.place(session(), pack_of("dnn"))
  found = packs.initial(placed, Purpose.AGAIN)
  kernel = found["hidden_0"]["kernel"]
  assert not np.isin(
    kernel[kernel != 0], packs.initial(placed)["hidden_0"]["kernel"]
  ).any()
  masks = packs.width_masks(placed)["hidden_0"]["kernel"]
  np.testing.assert_array_equal(kernel != 0, masks)


def test_one_program_draws_for_all_small_packs():
  opened = sessions.open_session(CONFIG, dataset())
  for family in PACKS:
    packs.initial(sessions.place(opened, pack_of(family)))
  assert len(opened.programs) == 1


# --- layouts -----------------------------------------------------------------

BOTH = {"seed_mapping": "vmap", "member_mapping": "vmap"}
LAYOUTS = [
  ("dnn", 1, {"seed_mapping": "vmap", "member_mapping": "map"}),
  ("dnn", 2, {"device_map": "pmap"}),
  ("cnn", 1, {"convolution": "stock", **BOTH}),
  ("cnn", 8, {"convolution": "im2col", "device_map": "pmap"}),
  pytest.param("vit", 1, BOTH, marks=pytest.mark.slow),
]


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("family, devices, changes", LAYOUTS)
def test_the_layout_changes_no_number(family, devices, changes):
  found = train(pack_of(family), CONFIG.replace(**changes), devices)
  assert_close(results(found), results(reference(family)[0]), 2e-4)


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize(
  "family", ["cnn", pytest.param("vit", marks=pytest.mark.slow)]
)
def test_the_size_of_the_cache_changes_no_number(family):
  opened, pack = session(), pack_of(family)
  whole = sessions.layout_of(opened, pack).microbatch
  with mock.patch.object(costs, "MICROBATCH_BYTES", 1):
    assert sessions.layout_of(opened, pack).microbatch == 4 < whole == 8
    found = packs.train(opened, pack)
  assert_close(results(found), results(reference(family)[0]), 2e-4)


def test_eight_devices_hold_what_does_not_divide():
  pack = pack_of("dnn")  # two seeds of four slots
  full = sessions.padded(pack, sessions.layout_of(session(), pack))
  assert full.slots % 8 == 0 or len(full.seeds) % 8 == 0
  found, _ = reference("dnn")
  assert found.curve.train.loss.shape == (2, 3, 4)
  assert found.scores.test.correct.shape == (2, 3)
  assert [p["output"]["bias"].shape for p in found.params] == [(2, 3)] * 3


@pytest.mark.usefixtures("quick_compilation")
def test_a_seed_does_not_depend_on_how_many_run():
  many = results(train(pack_of("dnn", (3, 0, 8, 5, 1))))
  pair = results(reference("dnn")[0])
  for place, other in ((3, 0), (1, 1)):
    assert_close(
      jax.tree.map(lambda leaf, i=place: leaf[i], many),
      jax.tree.map(lambda leaf, i=other: leaf[i], pair),
      1e-4,
    )


def test_equal_packs_share_their_programs():
  found, _ = reference("dnn")
  count = len(session().programs)
  again = packs.train(session(), pack_of("dnn", SEEDS[::-1]))
  assert len(session().programs) == count
  assert again.compile_seconds == 0
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(a[::-1], b),
    results(again),
    results(found),
  )


@pytest.mark.usefixtures("quick_compilation")
def test_bfloat16_products_train_float32_parameters():
  found = train(pack_of("dnn"), CONFIG.replace(compute_dtype="bfloat16"))
  expected, _ = reference("dnn")
  assert found.params[0]["output"]["kernel"].dtype == np.float32
  loss, exact = found.scores.train.loss, expected.scores.train.loss
  assert not np.array_equal(loss, exact)
  np.testing.assert_allclose(loss, exact, rtol=0.1)


# --- what comes back ---------------------------------------------------------


@pytest.mark.parametrize("family", PACKS)
def test_scores_are_those_of_the_parameters_that_come_back(family):
  trained, _ = reference(family)
  batches = [getattr(dataset(), split) for split in packs.Scores._fields]
  images = np.concatenate([batch.x for batch in batches])
  ends = np.cumsum([len(batch.y) for batch in batches])[:-1]
  losses = jax.jit(evaluation.losses)
  for i, a in enumerate(trained.pack.architectures):
    model = models.make_model(a, Problem(SHAPE, CLASSES))
    apply = jax.jit(jax.vmap(model.apply, (0, None)))
    logits = np.asarray(apply(trained.params[i], images))
    logits = np.split(logits, ends, axis=1)
    for found, batch, score in zip(
      logits, batches, trained.scores, strict=True
    ):
      labels = np.broadcast_to(batch.y, found.shape[:2])
      loss, correct = jax.device_get(losses(found, labels))
      np.testing.assert_array_equal(score.correct[:, i], correct.sum(1))
      np.testing.assert_allclose(score.loss[:, i], loss.mean(1), rtol=1e-5)
  curve, final = trained.curve.validation, trained.scores.validation
  np.testing.assert_array_equal(curve.correct[..., -1], final.correct)
  np.testing.assert_allclose(curve.loss[..., -1], final.loss, rtol=1e-5)


@pytest.mark.usefixtures("quick_compilation")
def test_calls_of_single_epochs_change_nothing_but_the_progress():
  seen = []
  with mock.patch.object(sessions, "CALL_SECONDS", 0.0):
    opened = sessions.open_session(CONFIG, dataset())
    found = packs.train(opened, pack_of("dnn"), seen.append)
  assert seen == [1, 1, 1, 1]
  assert_close(results(found), results(reference("dnn")[0]), 1e-4)


@pytest.mark.parametrize("family", PACKS)
def test_stacking_undoes_splitting(family):
  trained, _ = reference(family)
  stacked = packs.stack_members(trained.params, trained.pack, session())
  slots = {leaf.shape[:2] for leaf in jax.tree.leaves(stacked)}
  assert slots == {(len(SEEDS), trained.pack.slots)}
  found = packs.split_members(stacked, trained.pack, session())
  assert_close(found, trained.params, 0)


# --- several at a time -------------------------------------------------------


def test_packs_that_train_at_the_same_time_share_a_program():
  expected, _ = reference("dnn")
  opened = sessions.open_session(CONFIG.replace(packs_at_once=2), dataset())
  found = sessions.together(
    opened,
    [pack_of("dnn"), pack_of("dnn", SEEDS[::-1])],
    lambda pack: packs.train(opened, pack),
  )
  assert len(opened.programs) == 2  # one draws, one trains
  assert sum(trained.compile_seconds == 0 for trained in found) <= 1
  for trained, order in zip(
    found, (slice(None), slice(None, None, -1)), strict=True
  ):
    jax.tree.map(
      lambda a, b, order=order: np.testing.assert_array_equal(a[order], b),
      results(trained),
      results(expected),
    )


# --- divergence --------------------------------------------------------------


@pytest.mark.usefixtures("quick_compilation")
def test_a_network_that_diverges_is_data():
  config = CONFIG.replace(
    optimizer="sgd", learning_rate=1e6, schedule="constant"
  )
  trained = train(pack_of("dnn"), config)
  bad = ~np.isfinite(trained.scores.train.loss)
  assert bad.any()
  for score in trained.scores:
    assert (score.correct[bad] == 0).all()
  assert trained.curve.train.loss.shape == (2, 3, 4)


@pytest.mark.parametrize("family", ("dnn", "cnn", "vit"))
def test_a_seed_of_a_fold_trains_and_scores_as_on_its_own_split(family):
  session, seeds = sessions.open_session(CONFIG, folded()), (2, 4, 7)
  found = packs.train(session, pack_of(family, seeds))
  for j, seed in enumerate(seeds):
    train_split, held = folded().of_seed(seed)
    own = dataclasses.replace(
      folded(), train=train_split, validation=held, folds=None
    )
    alone = packs.train(
      sessions.open_session(CONFIG, own), pack_of(family, (seed,))
    )
    for a, b in zip(found.params, alone.params, strict=True):
      one = jax.tree.map(lambda leaf, j=j: leaf[j : j + 1], a)
      assert_close(comparable(one), comparable(b), 1e-5)
    for split in packs.Scores._fields:
      one, other = (getattr(each.scores, split) for each in (found, alone))
      np.testing.assert_array_equal(one.correct[j], other.correct[0])
      np.testing.assert_allclose(one.loss[j], other.loss[0], rtol=1e-4)
    ours, theirs = found.scores.validation.hits[j], alone.scores.validation.hits
    size = len(held.y)
    bits = np.unpackbits(ours, axis=-1)
    np.testing.assert_array_equal(
      bits[:, :size], np.unpackbits(theirs[0], axis=-1)[:, :size]
    )
    assert not bits[:, size:].any()
    np.testing.assert_array_equal(
      bits.sum(-1), found.scores.validation.correct[j]
    )
