"""Schedules: laws over the registry, then the lottery, on a toy training."""

import functools
from unittest import mock

import jax
import numpy as np
import pytest

from minarch_jax import pruning
from minarch_jax.pruning import dynamic, schedules

SIZE = 200
START = {
  "kernel": np.random.default_rng(0).normal(size=SIZE).astype(np.float32),
  "bias": np.zeros(3, np.float32),
}
cut = jax.jit(
  lambda params, sparsity, masks: pruning.prune(params, sparsity, masks=masks)
)


def cut_any(params, sparsity, masks):
  """`prune` with what a schedule does not vary bound."""
  if masks is None:
    masks = jax.tree.map(lambda _: np.ones((), bool), params)
  full = {"kernel": np.broadcast_to(masks["kernel"], SIZE), "bias": np.True_}
  return cut(params, np.float32(sparsity), full)


class Log:
  """A training that moves weights a little and writes down how it is called."""

  def __init__(self):
    self.calls = []

  def __call__(self, params, masks, steps):
    self.calls.append((params, masks, steps))
    draw = np.random.default_rng(len(self.calls))
    step = draw.normal(size=SIZE).astype(np.float32) * 0.01 * steps
    kernel = np.asarray(params["kernel"]) + step * np.asarray(masks["kernel"])
    return {**params, "kernel": kernel}


@pytest.mark.parametrize("name", schedules.SCHEDULES)
@pytest.mark.parametrize("sparsity", [0.0, 0.9])
def test_schedules_end_at_the_sparsity_after_the_steps(name, sparsity):
  train = Log()
  found = schedules.SCHEDULES[name](START, sparsity, cut_any, train, 23, 5)
  kept = round((1 - sparsity) * SIZE)
  assert pruning.count(found.masks) == kept
  assert np.count_nonzero(found.params["kernel"]) == kept
  assert found.steps == sum(steps for _, _, steps in train.calls)
  assert found.steps == (0 if name == "oneshot" else 23)
  for params, masks, _ in train.calls:  # trained from masked parameters
    assert not np.any(np.asarray(params["kernel"])[~masks["kernel"]])
  kernels = [np.asarray(masks["kernel"]) for _, masks, _ in train.calls]
  for before, after in zip(kernels, kernels[1:], strict=False):
    assert np.all(after <= before)


@pytest.mark.parametrize("curve", [schedules.geometric, schedules.cubic])
@pytest.mark.parametrize("rounds", [1, 2, 10])
def test_curves_rise_to_the_sparsity(curve, rounds):
  levels = curve(0.9, rounds)
  assert len(levels) == rounds and levels[-1] == 0.9
  assert all(a < b for a, b in zip(levels, levels[1:], strict=False))
  assert levels[0] > 0


def test_curves_by_hand():
  np.testing.assert_allclose(schedules.geometric(0.75, 2), [0.5, 0.75])
  np.testing.assert_allclose(schedules.cubic(0.8, 2), [0.7, 0.8])


def test_one_round_is_fine_tuning():
  once = schedules.iterative(START, 0.8, cut_any, Log(), 10, 1)
  tuned = schedules.finetune(START, 0.8, cut_any, Log(), 10, 7)
  np.testing.assert_array_equal(once.params["kernel"], tuned.params["kernel"])


@pytest.mark.parametrize("rewind_steps", [0, 4])
def test_the_lottery_rewinds_and_prunes_what_it_trained(rewind_steps):
  train = Log()
  tickets = schedules.lottery(
    START, cut_any, train, 20, rounds=3, rewind_steps=rewind_steps
  )
  assert [ticket.steps for ticket in tickets] == [
    rewind_steps + 20 * i for i in range(1, 5)
  ]
  kept = [int(pruning.count(ticket.masks)) for ticket in tickets]
  assert kept == [round(0.8**i * SIZE) for i in range(4)]
  calls = train.calls[1:] if rewind_steps else train.calls
  anchor = np.asarray(calls[0][0]["kernel"])
  for (params, masks, steps), ticket in zip(calls, tickets, strict=True):
    expected = anchor * np.asarray(ticket.masks["kernel"])
    np.testing.assert_array_equal(params["kernel"], expected)
    assert masks is ticket.masks and steps == 20
  # Each round prunes by the weights of the round before.
  for before, after in zip(tickets, tickets[1:], strict=False):
    masks = cut_any(before.params, after.sparsity, before.masks)
    np.testing.assert_array_equal(masks["kernel"], after.masks["kernel"])


@pytest.mark.parametrize("rounds", [1, 4])
def test_connections_move_between_rounds(rounds):
  """The number of connections and the steps are what was asked for."""
  train, fractions = Log(), []

  def move(params, masks, fraction):
    fractions.append(float(fraction))
    return dynamic.Moved(params, jax.tree.map(np.asarray, masks))

  found = schedules.dynamic_sparse(
    START, 0.9, cut_any, train, move, steps=22, rounds=rounds
  )
  assert pruning.count(found.masks) == round(0.1 * SIZE)
  assert found.steps == sum(steps for _, _, steps in train.calls) == 22
  assert len(fractions) == rounds - 1 == len(train.calls) - 1
  assert all(a > b > 0 for a, b in zip(fractions, fractions[1:], strict=False))


def test_a_schedule_is_known_by_its_registry_line():
  """Levels and a name are all there is to one; a function will do."""
  half_first = schedules.Schedule(lambda sparsity, rounds: [0.5, sparsity])
  with mock.patch.dict(schedules.SCHEDULES, halves=half_first):
    schedules.check("halves", 2, 9)
    with pytest.raises(ValueError, match="3 rounds do not fit 2"):
      schedules.check("halves", 3, 2)
    train = Log()
    found = pruning.SCHEDULES["halves"](START, 0.9, cut_any, train, 9, 2)
  counts = [int(masks["kernel"].sum()) for _, masks, _ in train.calls]
  assert counts == [SIZE // 2, round(0.1 * SIZE)] and found.steps == 9


ERRORS = {
  "unknown": (
    lambda: schedules.check("gradul", 3, 9),
    "did you mean 'gradual'",
  ),
  "rounds": (lambda: schedules.check("iterative", 9, 3), "9 rounds do not fit"),
  "rate": (
    lambda: schedules.lottery(START, cut_any, Log(), 5, rounds=1, rate=1.0),
    "rate 1.0",
  ),
  "steps": (
    lambda: schedules.lottery(START, cut_any, Log(), 0, rounds=1),
    "steps 0",
  ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_is_named(name):
  call, message = ERRORS[name]
  with pytest.raises(ValueError, match=message):
    call()


def test_whatever_is_bound_reaches_prune():
  bound = functools.partial(pruning.prune, criterion="random")
  with pytest.raises(ValueError, match="'random' needs key="):
    bound(START, 0.5)
