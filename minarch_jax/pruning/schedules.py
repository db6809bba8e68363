"""When weights are removed: at once, in rounds, gradually, or again and again.

Every schedule is a plain loop over functions it is given: `cut(params,
sparsity, masks) -> masks` (`prune` with everything but these three bound) and
`train(params, masks, steps) -> params`. They work on one tree or on a stack of
networks (`cut` then fills every mask to its leaf's shape: a scalar mask of each
network fits no leaf of the stack), and may be compiled: a schedule calls `cut`
between steps, never inside one, so a training step costs what it costs without
pruning.
"""

from collections.abc import Callable
import dataclasses
import math
from typing import NamedTuple

from minarch_jax import registries
from minarch_jax.pruning import dynamic
from minarch_jax.pruning.masks import apply_masks
from minarch_jax.types import Array, Masks, Params

Sparsity = float | Array  # one number, or one for each network of a stack
Cut = Callable[[Params, Sparsity, Masks | None], Masks]
Train = Callable[[Params, Masks, int], Params]
Move = Callable[[Params, Masks, Array], dynamic.Moved]
# (sparsity, rounds) -> the sparsities cut at, the last one that asked for.
Levels = Callable[[Sparsity, int], list[Sparsity]]


class Pruned(NamedTuple):
  """A pruned network and the training steps the schedule spent on it."""

  params: Params
  masks: Masks
  steps: int


def at_once(sparsity: Sparsity, rounds: int) -> list[Sparsity]:
  """Lists the one sparsity asked for, however many rounds there are."""
  del rounds
  return [sparsity]


def geometric(sparsity: Sparsity, rounds: int) -> list[Sparsity]:
  """Lists sparsities whose kept fractions fall by one factor per round."""
  kept = [(1 - sparsity) ** (i / rounds) for i in range(1, rounds)]
  return [1 - fraction for fraction in kept] + [sparsity]


def cubic(sparsity: Sparsity, rounds: int) -> list[Sparsity]:
  """Lists s (1 - (1 - t)^3) at t = 1/rounds, 2/rounds, ..., 1.

  Fast while much is redundant, slow at the end (Zhu & Gupta 2017, arXiv
  1710.01878, equation 1).
  """
  times = [i / rounds for i in range(1, rounds)]
  return [sparsity * (1 - (1 - t) ** 3) for t in times] + [sparsity]


@dataclasses.dataclass(frozen=True)
class Schedule:
  """Prunes along a list of sparsities, training after each cut.

  >>> cut = lambda params, sparsity, masks: ma.prune(
  ...   params, sparsity, masks=masks)
  >>> found = ma.iterative(params, 0.9, cut, train, steps=30, rounds=3)
  >>> found.steps, round(float(ma.sparsity(found.masks)), 2)
  (30, 0.9)
  >>> slowly = ma.gradual(params, 0.9, cut, train, steps=30, rounds=10)

  Attributes:
    levels: lists the sparsities.
    trains: whether anything is trained; all steps are spent then, in shares
      that differ by one at most.
  """

  levels: Levels
  trains: bool = True

  def __call__(
    self,
    params: Params,
    sparsity: Sparsity,
    cut: Cut,
    train: Train,
    steps: int,
    rounds: int,
  ) -> Pruned:
    """Prunes `params` to a sparsity; see the module for `cut` and `train`."""
    masks, levels = None, self.levels(sparsity, rounds)
    for i, level in enumerate(levels):
      masks = cut(params, level, masks)
      params = apply_masks(params, masks)
      if self.trains:
        share = steps * (i + 1) // len(levels) - steps * i // len(levels)
        params = train(params, masks, share)
    return Pruned(params, masks, steps if self.trains else 0)


oneshot = Schedule(at_once, trains=False)
finetune = Schedule(at_once)
# Han et al. 2015 (arXiv 1506.02626).
iterative = Schedule(geometric)
# For many rounds of few steps.
gradual = Schedule(cubic)
SCHEDULES = registries.SCHEDULES


def check(name: str, rounds: int, steps: int) -> None:
  """Raises ValueError for an unknown schedule or more rounds than steps."""
  schedule = registries.find("schedule", name, SCHEDULES)
  in_rounds = (
    isinstance(schedule, Schedule) and len(schedule.levels(0.5, 2)) > 1
  )
  if rounds < 1 or (in_rounds and rounds > steps):
    raise ValueError(
      f"schedule {name!r}: {rounds} rounds do not fit {steps} training steps; "
      "take at least one step per round"
    )


def dynamic_sparse(
  params: Params,
  sparsity: Sparsity,
  cut: Cut,
  train: Train,
  move: Move,
  steps: int,
  rounds: int,
) -> Pruned:
  """Cuts once, then trains while connections move, fewer in every round.

  >>> cut = lambda params, sparsity, masks: ma.prune(params, sparsity)
  >>> move = lambda params, masks, fraction: ma.rigl(
  ...   params, masks, fraction, jax.grad(loss)(params, batch))
  >>> found = ma.dynamic_sparse(
  ...   params, 0.8, cut, train, move, steps=30, rounds=3)
  >>> found.steps, round(float(ma.sparsity(found.masks)), 2)
  (30, 0.8)

  Args:
    params, sparsity, cut, train, steps: as for a Schedule.
    move: `move(params, masks, fraction) -> Moved`, as `rigl` and
      `sparse_evolution` with the rest bound.
    rounds: the steps are shared by so many; connections move between two.
  """
  masks = cut(params, sparsity, None)
  params = apply_masks(params, masks)
  for i in range(rounds):
    share = steps * (i + 1) // rounds - steps * i // rounds
    params = train(params, masks, share)
    if i + 1 < rounds:
      fraction = dynamic.moving_fraction(i + 1, rounds)
      params, masks = move(params, masks, fraction)
  return Pruned(params, masks, steps)


class Ticket(NamedTuple):
  """One round of the lottery: what was found, and what it trains to."""

  sparsity: float
  masks: Masks
  params: Params
  steps: int


def lottery(
  start: Params,
  cut: Cut,
  train: Train,
  steps: int,
  *,
  rounds: int,
  rate: float = 0.2,
  rewind_steps: int = 0,
) -> list[Ticket]:
  """Finds lottery tickets: train, prune, rewind, repeat.

  >>> cut = lambda params, sparsity, masks: ma.prune(
  ...   params, sparsity, masks=masks)
  >>> tickets = ma.lottery(params, cut, train, steps=30, rounds=2)
  >>> [round(float(ma.sparsity(ticket.masks)), 2) for ticket in tickets]
  [0.0, 0.2, 0.36]

  Iterative magnitude pruning with rewinding to the initialisation (Frankle &
  Carbin 2019, arXiv 1803.03635) or, with `rewind_steps` > 0, to an early point
  of training (Frankle et al. 2020, arXiv 1912.05671). Every ticket is trained
  for the same number of steps from the same point.

  Args:
    start: parameters at initialisation.
    cut: usually magnitude; an output layer pruned at half the rate, as in the
      paper, is a dictionary scope.
    train: trains from given parameters; must restart its optimizer.
    steps: steps every ticket trains after the rewinding point.
    rounds: number of tickets after the dense network.
    rate: fraction of the remaining weights each round removes.
    rewind_steps: steps from initialisation to the rewinding point.

  Returns:
    The dense network first, then one ticket per round with `steps` spent so
    far on the whole procedure.

  Raises:
    ValueError: rate outside (0, 1), or a negative number of rounds or steps.
  """
  if not 0 < rate < 1:
    raise ValueError(f"rate {rate} is outside (0, 1), for example 0.2")
  if min(rounds, rewind_steps, steps - 1) < 0:
    raise ValueError(
      f"rounds {rounds}, steps {steps} and rewind_steps {rewind_steps} must be "
      "at least 0, 1 and 0"
    )
  masks = cut(start, 0.0, None)
  anchor = train(start, masks, rewind_steps) if rewind_steps else start
  spent = rewind_steps + steps
  params = train(anchor, masks, steps)
  tickets = [Ticket(0.0, masks, params, spent)]
  for i in range(1, rounds + 1):
    sparsity = 1 - math.pow(1 - rate, i)
    masks = cut(params, sparsity, masks)
    params = train(apply_masks(anchor, masks), masks, steps)
    spent += steps
    tickets.append(Ticket(sparsity, masks, params, spent))
  return tickets
