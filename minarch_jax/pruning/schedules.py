"""When weights are removed: at once, in rounds, gradually, or again and again.

Every schedule is a plain loop over two functions it is given: `cut(params,
sparsity, masks) -> masks` (`prune` with everything but these three bound) and
`train(params, masks, steps) -> params`. Both work on one tree or on a stack of
networks (`cut` then fills every mask to its leaf's shape: a scalar mask of each
network fits no leaf of the stack), and both may be compiled: a schedule calls
`cut` between steps, never inside one, so a training step costs what it costs
without pruning.
"""

from collections.abc import Callable
import difflib
import math
from typing import NamedTuple

from minarch_jax.pruning.masks import apply_masks
from minarch_jax.types import Array, Masks, Params

Cut = Callable[[Params, float | Array, Masks | None], Masks]
Train = Callable[[Params, Masks, int], Params]


class Pruned(NamedTuple):
  """A pruned network and the training steps the schedule spent on it."""

  params: Params
  masks: Masks
  steps: int


Schedule = Callable[[Params, float, Cut, Train, int, int], Pruned]


def geometric(sparsity: float, rounds: int) -> list[float]:
  """Lists sparsities whose kept fractions fall by one factor per round."""
  kept = [(1 - sparsity) ** (i / rounds) for i in range(1, rounds)]
  return [1 - fraction for fraction in kept] + [sparsity]


def cubic(sparsity: float, rounds: int) -> list[float]:
  """Lists s (1 - (1 - t)^3) at t = 1/rounds, 2/rounds, ..., 1.

  Fast while much is redundant, slow at the end (Zhu & Gupta 2017, arXiv
  1710.01878, equation 1).
  """
  times = [i / rounds for i in range(1, rounds)]
  return [sparsity * (1 - (1 - t) ** 3) for t in times] + [sparsity]


def oneshot(
  params: Params,
  sparsity: float,
  cut: Cut,
  train: Train,
  steps: int,
  rounds: int,
) -> Pruned:
  """Cuts once and does not train."""
  del train, steps, rounds
  masks = cut(params, sparsity, None)
  return Pruned(apply_masks(params, masks), masks, 0)


def finetune(
  params: Params,
  sparsity: float,
  cut: Cut,
  train: Train,
  steps: int,
  rounds: int,
) -> Pruned:
  """Cuts once, then trains."""
  del rounds
  return _in_rounds(params, [sparsity], cut, train, steps)


def iterative(
  params: Params,
  sparsity: float,
  cut: Cut,
  train: Train,
  steps: int,
  rounds: int,
) -> Pruned:
  """Cuts and trains in turn, the kept fraction falling geometrically.

  Han et al. 2015 (arXiv 1506.02626); the steps are shared by the rounds.
  """
  levels = geometric(sparsity, rounds)
  return _in_rounds(params, levels, cut, train, steps)


def gradual(
  params: Params,
  sparsity: float,
  cut: Cut,
  train: Train,
  steps: int,
  rounds: int,
) -> Pruned:
  """Cuts during training along `cubic`; meant for many rounds of few steps."""
  return _in_rounds(params, cubic(sparsity, rounds), cut, train, steps)


SCHEDULES: dict[str, Schedule] = {
  "oneshot": oneshot,
  "finetune": finetune,
  "iterative": iterative,
  "gradual": gradual,
}


def check(name: str, rounds: int, steps: int) -> None:
  """Raises ValueError for an unknown schedule or more rounds than steps."""
  if name not in SCHEDULES:
    near = difflib.get_close_matches(str(name), SCHEDULES, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(
      f"schedule {name!r} is not one of {', '.join(SCHEDULES)}{hint}"
    )
  if rounds < 1 or (name in ("iterative", "gradual") and rounds > steps):
    raise ValueError(
      f"schedule {name!r}: {rounds} rounds do not fit {steps} training steps; "
      "take at least one step per round"
    )


def _in_rounds(params, levels, cut, train, steps) -> Pruned:
  """Spends exactly `steps`, in shares that differ by one at most."""
  masks = None
  for i, level in enumerate(levels):
    masks = cut(params, level, masks)
    share = steps * (i + 1) // len(levels) - steps * i // len(levels)
    params = train(apply_masks(params, masks), masks, share)
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
