"""Packs: a network in a pack is the network alone, wherever and however run."""

import dataclasses
import functools
import threading
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minarch_jax import (
  evaluation,
  models,
  packs,
  planning,
  population,
  training,
)
from minarch_jax.architectures import Architecture
from minarch_jax.config import Config
from minarch_jax.types import Batch
from tests import made_up
from tests.made_up import CLASSES, SHAPE

SEEDS = (5, 0)
CONFIG = Config(num_epochs=4, batch_size=8, learning_rate=0.01)  # 20 steps

# Members of a pack, its parent, wider than it need be, and its slots.
PACKS = {
  "dnn": (("dnn:2-3", "dnn:7-1", "dnn:4"), "dnn:9-6", 4),
  "cnn": (("cnn:1-4", "cnn:3-2"), "cnn:3-5", 3),
  "vit": (
    ("vit:p2-d4-l2-h2", "vit:p2-d6-l1-h3-k1-m5"),
    "vit:p2-d8-l2-h3-k2-m12.9",
    2,
  ),
}


@functools.cache
def dataset():
  return made_up.dataset(43, 13, 11)


def parse(text):
  return Architecture.parse(text)


def pack_of(family, seeds=SEEDS):
  texts, parent, slots = PACKS[family]
  members = tuple(map(parse, texts))
  return planning.Pack(members, tuple(seeds), parse(parent), slots)


def on_devices(count):
  """Lets the engine see the first devices only."""
  devices = jax.local_devices()[:count]
  return mock.patch.object(jax, "local_devices", lambda: devices)


def train(pack, config=CONFIG, devices=8):
  with on_devices(devices):
    return packs.train(packs.open_session(config, dataset()), pack)


@functools.cache
def session():
  """One session, and so one cache of programs, for all that need no other."""
  return packs.open_session(CONFIG, dataset())


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
def slope_of(text, x64):
  """Loss and gradient of one network; `x64` keeps the precisions apart."""
  model = models.make_model(parse(text), SHAPE, CLASSES)

  def loss(params, batch):
    logs = jax.nn.log_softmax(model.apply(params, batch.x))
    return -jnp.take_along_axis(logs, batch.y[:, None], 1).mean()

  return jax.jit(model.init), jax.jit(jax.value_and_grad(loss))


def trained_by_hand(text, seed, config):
  """One network and its curve of training losses, step after step."""
  init, slope = slope_of(text, jax.config.jax_enable_x64)  # pyright: ignore
  params = jax.device_get(init(training.key_for(seed, training.INIT)))
  tx = training.make_tx(config)
  update, opt_state = jax.jit(tx.update), jax.jit(tx.init)(params)
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
  spec = pack.parent.spec(SHAPE, CLASSES)
  for i, a in enumerate(pack.members):
    depth = None if a.family == "cnn" else pack.parent.depth
    masks = models.width_masks(spec, a.sizes(SHAPE, CLASSES, depth))
    for leaf, mask in zip(
      jax.tree.leaves(stacked), jax.tree.leaves(masks), strict=True
    ):
      assert mask.any() or a.depth < pack.parent.depth
      assert not leaf[:, i][:, ~mask].any()


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("family", PACKS)
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


@functools.cache
def init_of(text):
  return jax.jit(models.make_model(parse(text), SHAPE, CLASSES).init)


@pytest.mark.parametrize("family", PACKS)
def test_packs_start_from_the_initial_values_of_the_networks_alone(family):
  pack = pack_of(family)
  placed = packs.place(session(), pack)
  found = packs.initial(placed)
  lead = {leaf.shape[:2] for leaf in jax.tree.leaves(found)}
  assert lead == {(len(placed.pack.seeds), placed.pack.slots)}
  for a, trees in zip(
    pack.architectures,
    packs.split_members(found, pack, session()),
    strict=True,
  ):
    for j, seed in enumerate(SEEDS):
      expected = init_of(str(a))(training.key_for(seed, training.INIT))
      alone = jax.tree.map(lambda leaf, j=j: leaf[j], trees)
      assert jax.tree.structure(alone) == jax.tree.structure(expected)
      # Optimized, the inverse of the error function ends in other last bits.
      jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6),
        alone,
        expected,
      )


def test_new_weights_are_other_draws():
  placed = packs.place(session(), pack_of("dnn"))
  found = packs.initial(placed, training.AGAIN)
  kernel = found["hidden_0"]["kernel"]
  assert not np.isin(
    kernel[kernel != 0], packs.initial(placed)["hidden_0"]["kernel"]
  ).any()
  masks = packs.width_masks(placed)["hidden_0"]["kernel"]
  np.testing.assert_array_equal(kernel != 0, masks)


def test_one_program_draws_for_all_small_packs():
  opened = packs.open_session(CONFIG, dataset())
  for family in PACKS:
    packs.initial(packs.place(opened, pack_of(family)))
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
  whole = packs.layout_of(opened, pack).microbatch
  with mock.patch.object(planning, "MICROBATCH_BYTES", 1):
    assert packs.layout_of(opened, pack).microbatch == 4 < whole == 8
    found = packs.train(opened, pack)
  assert_close(results(found), results(reference(family)[0]), 2e-4)


def test_eight_devices_hold_what_does_not_divide():
  pack = pack_of("dnn")  # two seeds of four slots
  full = packs.padded(pack, packs.layout_of(session(), pack))
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
    model = models.make_model(a, SHAPE, CLASSES)
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
  with mock.patch.object(packs, "CALL_SECONDS", 0.0):
    opened = packs.open_session(CONFIG, dataset())
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


def test_the_session_holds_every_image_once():
  data, seen = jax.device_get(session().data), 0
  for split in packs.Scores._fields:
    batch = getattr(dataset(), split)
    first, last = session().splits[split]
    assert first == seen  # splits are neighbours, the training images first
    seen = last
    chunks = jax.tree.map(lambda leaf, i=first, j=last: leaf[i:j], data)
    real = chunks.weight.reshape(-1) > 0
    assert real[: len(batch.y)].all() and real.sum() == len(batch.y)
    np.testing.assert_array_equal(chunks.x.reshape(-1, *SHAPE)[real], batch.x)
    np.testing.assert_array_equal(chunks.y.reshape(-1)[real], batch.y)
  assert seen == len(data.y)


def test_a_batch_larger_than_the_training_split_is_refused():
  with pytest.raises(ValueError, match="--batch_size=44 .* made-up .43 images"):
    packs.open_session(CONFIG.replace(batch_size=44), dataset())


# --- what does not fit -------------------------------------------------------


EXHAUSTED = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate"


def fitting(most, seen):
  """A stand-in for `train` on a device with room for so many networks."""

  def train(session, pack, progress):
    del session, progress
    if pack.slots * len(pack.seeds) > most:
      raise jax.errors.JaxRuntimeError(EXHAUSTED)
    seen.extend((a, s) for s in pack.seeds for a in pack.architectures)
    return pack

  return train


@pytest.mark.parametrize("most", [1, 2, 4, 8, 100])
def test_what_does_not_fit_is_split_until_it_does(most):
  pack, seen = pack_of("dnn", (3, 0, 8)), []
  with mock.patch.object(packs, "train", fitting(most, seen)):
    parts = packs.train_or_split(session(), pack)
  assert len(seen) == len(set(seen)) == 9
  assert {seed for _, seed in seen} == {3, 0, 8}
  for part in parts:  # whatever they hold, they are of the planned program
    assert part.parent == pack.parent
    assert len(part.architectures) <= part.slots
  order = [a for part in parts for a in part.architectures]
  assert list(dict.fromkeys(order)) == list(pack.architectures)


def test_one_network_that_does_not_fit_says_what_to_lower():
  advice = "lower --batch_size or --memory_limit"
  with (
    mock.patch.object(packs, "train", fitting(0, [])),
    pytest.raises(MemoryError, match=f"dnn:9-6 does not fit .*{advice}"),
  ):
    packs.train_or_split(session(), pack_of("dnn"))


def test_other_errors_of_a_device_come_through():
  error = jax.errors.JaxRuntimeError("INTERNAL: something else")
  with (
    mock.patch.object(packs, "train", side_effect=error) as train,
    pytest.raises(jax.errors.JaxRuntimeError, match="something else"),
  ):
    packs.train_or_split(session(), pack_of("dnn"))
  assert train.call_count == 1


# --- several at a time -------------------------------------------------------


def session_at_once(count):
  """A session of its own to stop, with everybody's programs."""
  config = CONFIG.replace(packs_at_once=count)
  return dataclasses.replace(
    session(), config=config, lock=threading.Lock(), stop=threading.Event()
  )


@pytest.mark.parametrize("count", [1, 2, 3])
def test_so_many_are_in_progress_and_results_come_in_order(count):
  active, most = set(), []
  gate = threading.Barrier(count)

  def work(task):
    active.add(task)
    gate.wait(30)  # all of them, or nobody
    most.append(len(active))
    gate.wait(30)
    active.remove(task)
    return -task

  tasks = list(range(3 * count))
  found = packs.together(session_at_once(count), tasks, work)
  assert found == [-task for task in tasks]
  assert set(most) == {count}


def test_the_first_error_stops_the_others():
  opened, started = session_at_once(2), []

  def work(task):
    started.append(task)
    if task == 1:
      raise ValueError("a disk is full")
    assert opened.stop.wait(30)
    return packs.train(opened, pack_of("dnn"))  # its programs are there

  with pytest.raises(ValueError, match="a disk is full"):
    packs.together(opened, range(10), work)
  assert len(started) <= 3  # one more may have begun, and was stopped
  with pytest.raises(packs.Stopped):
    packs.train(opened, pack_of("dnn"))


def test_packs_that_train_at_the_same_time_share_a_program():
  expected, _ = reference("dnn")
  opened = packs.open_session(CONFIG.replace(packs_at_once=2), dataset())
  found = packs.together(
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


def test_a_program_that_did_not_compile_is_compiled_when_asked_again():
  opened = packs.open_session(CONFIG, dataset())
  placed = packs.place(opened, pack_of("dnn"))
  with (
    mock.patch.object(population, "compile", side_effect=OSError("disk")),
    pytest.raises(OSError, match="disk"),
  ):
    packs.initial(placed)
  assert not opened.programs
  assert packs.initial(placed)["output"]["kernel"].any()


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
