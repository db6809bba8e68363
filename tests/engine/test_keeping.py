"""A pack that is stopped and gone on with is one trained straight through."""

import dataclasses
import functools
import threading

import jax
import numpy as np
import pytest

from minarch_jax.engine import packs
from minarch_jax.engine import session as sessions
from tests.engine import small_packs
from tests.engine.small_packs import CONFIG, pack_of, PACKS

EPOCHS = CONFIG.num_epochs


class Memory:
  """Keeps states as long as the test lasts."""

  def __init__(self, due):
    self.states, self._due = [], due

  def load(self, like):
    if self.states:
      kept = self.states[-1]
      assert jax.tree.structure(kept.state) == jax.tree.structure(like)
      return kept

  def due(self):
    return self._due

  def keep(self, kept):
    self.states.append(kept)


@pytest.fixture(autouse=True)
def calls_of_an_epoch(monkeypatch):
  monkeypatch.setattr(sessions, "CALL_SECONDS", 0.0)


def opened():
  """A session that nobody has told to stop, with the programs of the others."""
  return dataclasses.replace(small_packs.session(), stop=threading.Event())


@functools.cache
def straight(family):
  return packs.train(opened(), pack_of(family))


def train(family, memory, stop=EPOCHS):
  """Trains a pack, told to stop after so many epochs; what progress heard."""
  session, heard = opened(), []

  def progress(epochs):
    heard.append(epochs)
    if sum(heard) >= stop and stop < EPOCHS:
      session.stop.set()

  pack = pack_of(family)
  if stop < EPOCHS:
    with pytest.raises(sessions.Stopped):
      packs.train(session, pack, progress, lambda pack: memory)
    return None, heard
  return packs.train(session, pack, progress, lambda pack: memory), heard


def assert_same(found, expected):
  for one, other in zip(
    *(
      jax.tree.leaves((each.params, each.curve, each.scores))
      for each in (found, expected)
    ),
    strict=True,
  ):
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("due", [False, True])
@pytest.mark.parametrize("stop", range(1, EPOCHS))
@pytest.mark.parametrize("family", PACKS)
def test_stopped_after_any_call_a_pack_ends_as_if_it_were_not(
  family, stop, due
):
  memory = Memory(due)
  train(family, memory, stop)
  assert memory.states[-1].epochs == stop
  found, heard = train(family, memory)
  assert heard == [stop] + [1] * (EPOCHS - stop)
  assert_same(found, straight(family))


def test_a_pack_may_be_stopped_again_and_again():
  memory = Memory(due=False)
  for stop in range(1, EPOCHS):
    train("cnn", memory, stop)
  assert [kept.epochs for kept in memory.states] == [1, 2, 3]
  assert_same(train("cnn", memory)[0], straight("cnn"))


def test_what_is_kept_stays_as_it_was():
  """The buffers of a state are given up to the next call."""
  memory = Memory(due=True)
  found, _ = train("dnn", memory)
  assert [kept.epochs for kept in memory.states] == [1, 2, 3]
  for kept in memory.states:
    own = Memory(due=False)
    own.keep(kept)
    assert_same(train("dnn", own)[0], found)


def test_before_the_first_epoch_and_before_its_time_nothing_is_kept():
  memory = Memory(due=False)
  train("dnn", memory)
  session = opened()
  session.stop.set()
  with pytest.raises(sessions.Stopped):
    packs.train(session, pack_of("dnn"), keeper_of=lambda pack: memory)
  assert not memory.states


def test_seconds_are_those_of_all_processes():
  memory = Memory(due=False)
  train("dnn", memory, 2)
  (kept,) = memory.states
  assert 0 < kept.seconds < 60
  memory.states = [kept._replace(seconds=1000.0)]
  found, _ = train("dnn", memory)
  assert found is not None and 1000 < found.run_seconds < 1060
