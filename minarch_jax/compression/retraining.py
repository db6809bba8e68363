"""Trains pruned networks on: by a schedule, or as a control."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import numpy as np

from minarch_jax import random, registries
from minarch_jax.compression import grid as grids
from minarch_jax.compression import programs, scoring
from minarch_jax.compression.grid import Precision, Retraining
from minarch_jax.compression.programs import Outcome
from minarch_jax.compression.scoring import Ranked, Scorer
from minarch_jax.engine import packs
from minarch_jax.engine import session as sessions
from minarch_jax.engine.planning import Pack
from minarch_jax.engine.session import Placed, Session
from minarch_jax.pruning import dynamic
from minarch_jax.types import TrainState

# Steps that are trained together: the first epoch's number and rates [E, T].
Part = tuple[int, np.ndarray]


def retraining_steps(session: Session) -> tuple[int, int]:
  """Divides the steps of retraining: (epochs, steps of each)."""
  work, share = session.work, session.config.finetune_share
  total = max(1, round(share * work.num_steps))
  epochs = -(-total * work.num_epochs // work.num_steps)
  return epochs, round(total / epochs)


def retraining_rates(session: Session) -> np.ndarray:
  """Lists the learning rate of every step of retraining, float32 [E, T]."""
  rate = session.config.finetune_learning_rate
  return np.full(retraining_steps(session), rate, np.float32)


def retrain(
  ranked: Ranked,
  pack: Pack,
  retrainings: Sequence[Retraining],
  precisions: Sequence[Precision],
) -> Outcome:
  """Prunes once, retrains for equal steps, and scores at each precision.

  Retrainings take the pack's slots, as many at a time as there are, so the
  program that trained the pack also retrains it.

  Args:
    ranked: the trained networks.
    retrainings: those of one kind together; sparsity 0 is the control of
      equal steps.
    precisions: what is scored after retraining.

  Returns:
    Outcome arrays [S, retrainings, precisions].
  """
  parts = []
  for kind in dict.fromkeys(each.kind for each in retrainings):
    group = [each for each in retrainings if each.kind == kind]
    for first in range(0, len(group), pack.slots):
      some = group[first : first + pack.slots]
      parts.append(_retrain_slots(ranked, pack, some, precisions))
  return Outcome(*(np.concatenate(p, 1) for p in zip(*parts, strict=True)))


@dataclasses.dataclass
class Slots:
  """A pack's slots filled with retrainings of one kind.

  Attributes:
    ranked: the trained networks.
    placed: the slots on their devices.
    kind: a retraining that stands for all of them.
    level: int32 [A], which of the ranking's sparsities each is pruned to.
    exists: what exists of each network, placed.
  """

  ranked: Ranked
  placed: Placed
  kind: Retraining
  level: np.ndarray
  exists: Any

  def cut(self, params: Any, cuts: Any) -> tuple[Any, Any]:
    """Prunes placed networks: parameters and masks."""
    dense = Precision(32, self.ranked.roundings[0])
    pruned, masks, _ = scoring.transform(
      self.ranked, self.placed, params, cuts, self.level, dense
    )
    return pruned, masks

  def cut_again(
    self, params: Any, masks: Any, levels: np.ndarray
  ) -> tuple[Any, Any]:
    """Ranks what is left anew and prunes to other sparsities, as many as the
    ranking's own."""
    rules = tuple(self.ranked.cuts)
    cuts = scoring.cut_at(self.placed, rules, params, masks, levels)
    return self.cut(params, cuts[self.kind.rule])

  def train(self, state: TrainState, masks: Any, *parts: Part) -> TrainState:
    for first_epoch, rates in parts:
      state, _, _ = packs.train_epochs(
        self.placed, state, masks, rates, first_epoch=first_epoch
      )
    return state


def _retrain_slots(
  ranked: Ranked,
  pack: Pack,
  retrainings: Sequence[Retraining],
  precisions: Sequence[Precision],
) -> Outcome:
  """Retrains as many networks of one kind as the pack has slots."""
  session, kind = ranked.placed.session, retrainings[0]
  # The same parent and number of slots, hence the same programs; an
  # architecture stands in a slot for each sparsity.
  chosen = dataclasses.replace(
    pack, architectures=tuple(each.architecture for each in retrainings)
  )
  placed = sessions.place(session, chosen)
  missing = placed.pack.slots - len(retrainings)
  filled = [*retrainings, *[retrainings[-1]] * missing]
  members = [pack.architectures.index(each.architecture) for each in filled]

  def pick(tree):
    tree = jax.tree.map(lambda leaf: leaf[:, members], jax.device_get(tree))
    return placed.put(tree, "network")

  slots = Slots(
    ranked,
    placed,
    kind,
    ranked.level([each.sparsity for each in filled]),
    packs.width_masks(placed),
  )
  cuts, params = pick(ranked.cuts[kind.rule]), pick(ranked.params)
  train = _controlled if kind.control else _scheduled
  state, masks = train(slots, params, cuts)
  scorer = Scorer(placed, masks, state.opt_state)
  outcomes = []
  for precision in precisions:
    # What was pruned has stayed zero: the ranking's first level removes none.
    rounded, _, nonzeros = scoring.transform(
      *(ranked, placed, state.params, cuts, np.zeros_like(slots.level)),
      precision,
    )
    outcomes.append(scorer.score(rounded, nonzeros, precision.activation_bits))
  ranked.placed.compile_seconds += placed.compile_seconds
  keep = (slice(len(chosen.seeds)), slice(len(retrainings)))
  return Outcome(*(part[keep] for part in scoring.stack(outcomes, 2)))


def _controlled(slots: Slots, params: Any, cuts: Any) -> tuple[TrainState, Any]:
  """Trains a control of the pruned networks for all the steps they have had."""
  placed, control = slots.placed, str(slots.kind.control)
  session = placed.session
  anew = grids.CONTROLS[control]
  _, masks = slots.cut(params, cuts)
  source = params
  if anew:
    drawn = packs.initial(placed, random.Purpose.AGAIN)
    source = placed.put(drawn, "network")
  params, masks = placed.run(
    programs.CONTROL,
    static={"control": control},
    params=source,
    masks=masks,
    seed=placed.seeds,
    exists=slots.exists,
  )
  state = packs.start_state(placed, params)
  if anew:  # new weights need the steps of the training too
    state = slots.train(state, masks, (0, packs.rates_of(session)))
  more = (session.config.num_epochs, retraining_rates(session))
  return slots.train(state, masks, more), masks


def _scheduled(slots: Slots, params: Any, cuts: Any) -> tuple[TrainState, Any]:
  """Prunes and trains on by a schedule; all spend the same steps."""
  session, name = slots.placed.session, slots.kind.schedule
  rounds, levels = session.config.retraining_rounds, slots.ranked.levels
  if name in registries.MOVES:
    return _moving(slots, params, cuts, rounds)
  goals = registries.SCHEDULES[name].levels(levels, rounds)
  masks = slots.exists
  if len(goals) == 1:
    params, masks = slots.cut(params, cuts)
  state = packs.start_state(slots.placed, params)
  for goal, parts in zip(goals, _shares(session, len(goals)), strict=True):
    if len(goals) > 1:
      goal = np.asarray(goal, np.float32)
      params, masks = slots.cut_again(state.params, masks, goal)
      state = state._replace(params=params)
    state = slots.train(state, masks, *parts)
  return state, masks


def _moving(
  slots: Slots, params: Any, cuts: Any, rounds: int
) -> tuple[TrainState, Any]:
  """Cuts once, then lets connections move between rounds of training."""
  placed, session = slots.placed, slots.placed.session
  params, masks = slots.cut(params, cuts)
  state = packs.start_state(placed, params)
  for i, parts in enumerate(_shares(session, rounds)):
    if i:
      # A dense network has nowhere to grow: it is the control of equal steps.
      share = dynamic.moving_fraction(i, rounds)
      fraction = np.where(slots.level > 0, share, 0).astype(np.float32)
      params, masks = placed.run(
        programs.MOVE,
        static={"network": placed.network, "move": slots.kind.schedule},
        params=state.params,
        masks=masks,
        exists=slots.exists,
        seed=placed.seeds,
        member=(fraction, placed.sizes),
        round=np.int32(i),
        view=placed.view,
        data=session.data,
      )
      state = state._replace(params=params)
    state = slots.train(state, masks, *parts)
  return state, masks


def _shares(session: Session, rounds: int) -> list[list[Part]]:
  """Shares the steps of retraining between rounds, to one step equally.

  Returns:
    The parts of each round. Every part has epoch numbers of its own, and with
    them an order of the images.
  """
  rates, epoch = retraining_rates(session), session.config.num_epochs
  flat, length = rates.ravel(), rates.shape[1]
  found = []
  for i in range(rounds):
    part = flat[len(flat) * i // rounds : len(flat) * (i + 1) // rounds]
    whole = len(part) // length * length
    parts = [part[:whole].reshape(-1, length), part[whole:].reshape(1, -1)]
    found.append([])
    for each in parts:
      if each.size:
        found[-1].append((epoch, each))
        epoch += len(each)
  return found
