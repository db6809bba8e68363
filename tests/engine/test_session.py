"""Sessions: data on the devices, layouts of packs, several packs at a time."""

import dataclasses
import threading
from unittest import mock

import jax
import numpy as np
import pytest

from minarch_jax.architectures import Architecture
from minarch_jax.config import Config
from minarch_jax.engine import evaluation, packs
from minarch_jax.engine import session as sessions
from minarch_jax.engine.planning import Pack
from tests.engine.small_packs import (
  CONFIG,
  dataset,
  folded,
  pack_of,
  session,
)
from tests.made_up import SHAPE

# --- the data ----------------------------------------------------------------


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


def test_every_seed_sees_every_image_once_and_its_own_fold_apart():
  held = sessions.open_session(CONFIG, folded())
  data = jax.device_get(held.data)
  images = evaluation.images(data)
  for seed in range(6):
    fold = held.fold_of(seed)
    assert sorted(fold.view.chunks) == list(range(len(data.y)))
    train, validation = folded().of_seed(seed)
    expected = {"train": train, "validation": validation, "test": folded().test}
    np.testing.assert_array_equal(images.x[fold.train], train.x)
    leading = evaluation.leading(data, fold.view)
    np.testing.assert_array_equal(leading.x, train.x[: len(leading.y)])
    for split, (first, last) in held.splits.items():
      order = fold.view.chunks[first:last]
      real = data.weight[order].reshape(-1) > 0
      x = data.x[order].reshape(-1, *SHAPE)[real]
      np.testing.assert_array_equal(x, expected[split].x)
      assert fold.sizes[split] == len(x)
  assert held.work.num_train == 57 - 15 and held.work.num_eval == 15


def test_folds_out_of_order_are_refused():
  for folds in ([2, 1] * 21 + [1], [1, 3] + [3] * 41, [1, 2]):
    wrong = dataclasses.replace(folded(), folds=np.array(folds))
    with pytest.raises(ValueError, match="folds of 'made-up' must number"):
      sessions.open_session(CONFIG, wrong)


def test_a_batch_larger_than_the_training_split_is_refused():
  with pytest.raises(ValueError, match="--batch_size=44 .* made-up .43 images"):
    sessions.open_session(CONFIG.replace(batch_size=44), dataset())


# --- large networks ----------------------------------------------------------


@pytest.mark.parametrize("device_map", ["shard_map", "pmap"])
@pytest.mark.parametrize("family", ["dnn:9-5", "cnn:3-4"])
def test_a_large_network_splits_its_minibatches(
  digits, monkeypatch, family, device_map
):
  a = Architecture.parse(family)
  pack = Pack((a,), (3,), a, 1)
  config = Config(num_epochs=2, device_map=device_map)
  session = sessions.open_session(config, digits)
  whole = packs.train(session, pack)
  assert sessions.layout_of(session, pack).split == "seed"
  monkeypatch.setattr(sessions, "LARGE_STEP_SECONDS", 0.0)
  assert sessions.layout_of(session, pack).split == "batch"
  split = packs.train(session, pack)
  for found, expected in zip(
    jax.tree.leaves((split.params, split.curve)),
    jax.tree.leaves((whole.params, whole.curve)),
    strict=True,
  ):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


# --- what does not fit -------------------------------------------------------


EXHAUSTED = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate"


def fitting(most, seen):
  """A stand-in for `train` on a device with room for so many networks."""

  def train(session, pack, *unused):
    del session, unused
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
  return dataclasses.replace(session(), config=config, stop=threading.Event())


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
  found = sessions.together(session_at_once(count), tasks, work)
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
    sessions.together(opened, range(10), work)
  assert len(started) <= 3  # one more may have begun, and was stopped
  with pytest.raises(sessions.Stopped):
    packs.train(opened, pack_of("dnn"))
