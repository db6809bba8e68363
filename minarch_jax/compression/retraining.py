"""Trains pruned networks on: by a schedule, or as a control."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from minarch_jax import random, registries
from minarch_jax.compression import grid as grids
from minarch_jax.compression import networks as hosts
from minarch_jax.compression import programs, scoring
from minarch_jax.compression.grid import Precision, Retraining
from minarch_jax.compression.networks import Networks
from minarch_jax.compression.programs import Outcome
from minarch_jax.compression.scoring import Ranked, Scorer
from minarch_jax.engine import packs
from minarch_jax.engine import session as sessions
from minarch_jax.engine.planning import Pack
from minarch_jax.engine.session import Placed, Session
from minarch_jax.pruning import dynamic, vectors
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
    placed: the slots on their devices.
    kind: a retraining that stands for all of them.
    networks: as trained.
    places: of the groups of each.
    sparsities: to which each is pruned.
  """

  placed: Placed
  kind: Retraining
  networks: list[np.ndarray]
  places: list[np.ndarray]
  sparsities: list[float]

  def cut(self) -> list[np.ndarray]:
    """Marks what is kept of each network: bool [S, N]."""
    return scoring.masks_of(
      self.placed, self.kind.rule, self.places, self.sparsities
    )

  def cut_again(
    self, params: Any, masks: Networks, sparsities: Sequence[float]
  ) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Ranks what is left of placed networks anew, and prunes it further.

    Returns:
      The networks pruned, and masks.
    """
    rule = self.kind.rule
    left = self.held(params)
    places = scoring.places_of(self.placed, [rule], left, masks)[rule]
    found = scoring.masks_of(self.placed, rule, places, sparsities)
    found = [a & b for a, b in zip(found, masks, strict=True)]
    return scoring.pruned(left, found), found

  def held(self, params: Any) -> list[np.ndarray]:
    """Brings placed networks back."""
    return hosts.unstacked(self.placed, params, len(self.networks[0]))

  def put(self, networks: Networks) -> Any:
    """Places networks, or masks of them."""
    stack = hosts.stacked(self.placed, networks)
    return self.placed.put(hosts.tree_of(self.placed, stack), "network")

  def start(self, networks: Networks) -> TrainState:
    """Places networks beside a fresh optimizer state."""
    stack = hosts.stacked(self.placed, networks)
    return packs.start_state(self.placed, hosts.tree_of(self.placed, stack))

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
  members = [pack.architectures.index(r.architecture) for r in retrainings]
  chosen = dataclasses.replace(
    pack, architectures=tuple(each.architecture for each in retrainings)
  )
  placed = sessions.place(session, chosen)
  slots = Slots(
    placed,
    kind,
    [ranked.networks[member] for member in members],
    [ranked.places[kind.rule][member] for member in members],
    [each.sparsity for each in retrainings],
  )
  train = _controlled if kind.control else _scheduled
  state, masks = train(slots)
  networks = slots.held(state.params)
  scorer = Scorer(placed, masks, state.opt_state)
  outcomes = [
    scorer.score(
      hosts.rounded(placed, networks, precision),
      precision.activation_bits,
    )
    for precision in precisions
  ]
  ranked.placed.compile_seconds += placed.compile_seconds
  keep = (slice(len(chosen.seeds)), slice(len(retrainings)))
  return Outcome(*(part[keep] for part in scoring.stack(outcomes, 2)))


def _controlled(slots: Slots) -> tuple[TrainState, Any]:
  """Trains a control of the pruned networks for all the steps they have had."""
  placed, control = slots.placed, str(slots.kind.control)
  session, networks, masks = placed.session, slots.networks, slots.cut()
  seeds = len(networks[0])
  if control == "shuffled":
    draws = hosts.drawn(placed, random.Purpose.AGAIN, seeds)
    masks = [
      vectors.shuffled(mask, draw, hosts.vector_of(placed, architecture))
      for architecture, mask, draw in zip(
        placed.pack.architectures, masks, draws, strict=True
      )
    ]
  anew = grids.CONTROLS[control]
  if anew:
    initial = packs.initial(placed, random.Purpose.AGAIN)
    networks = hosts.unstacked(placed, initial, seeds)
  state = slots.start(scoring.pruned(networks, masks))
  placed_masks = slots.put(masks)
  if anew:  # new weights need the steps of the training too
    state = slots.train(state, placed_masks, (0, packs.rates_of(session)))
  more = (session.config.num_epochs, retraining_rates(session))
  return slots.train(state, placed_masks, more), placed_masks


def _scheduled(slots: Slots) -> tuple[TrainState, Any]:
  """Prunes and trains on by a schedule; all spend the same steps."""
  session, name = slots.placed.session, slots.kind.schedule
  rounds = session.config.retraining_rounds
  masks = slots.cut()
  networks = scoring.pruned(slots.networks, masks)
  if name in registries.MOVES:
    return _moving(slots, slots.start(networks), slots.put(masks), rounds)
  goals = [
    registries.SCHEDULES[name].levels(sparsity, rounds)
    for sparsity in slots.sparsities
  ]
  if len(goals[0]) == 1:
    state, (parts,) = slots.start(networks), _shares(session, 1)
    placed_masks = slots.put(masks)
    return slots.train(state, placed_masks, *parts), placed_masks
  masks = [np.ones(network.shape, bool) for network in networks]
  state, placed_masks = slots.start(slots.networks), None
  for goal, parts in zip(
    zip(*goals, strict=True), _shares(session, len(goals[0])), strict=True
  ):
    # Counted as sparsities are that a flag gives: to six decimals.
    wanted = [round(float(sparsity), 6) for sparsity in goal]
    networks, masks = slots.cut_again(state.params, masks, wanted)
    placed_masks = slots.put(masks)
    state = state._replace(params=slots.put(networks))
    state = slots.train(state, placed_masks, *parts)
  return state, placed_masks


def _moving(
  slots: Slots, state: TrainState, masks: Any, rounds: int
) -> tuple[TrainState, Any]:
  """Lets connections of pruned networks move between rounds of training."""
  placed, session = slots.placed, slots.placed.session
  exists = packs.width_masks(placed)
  spare = placed.pack.slots - len(slots.sparsities)
  sparse = np.array([*slots.sparsities, *slots.sparsities[-1:] * spare]) > 0
  for i, parts in enumerate(_shares(session, rounds)):
    if i:
      # A dense network has nowhere to grow: it is the control of equal steps.
      share = dynamic.moving_fraction(i, rounds)
      params, masks = placed.run(
        programs.MOVE,
        static={"network": placed.network, "move": slots.kind.schedule},
        params=state.params,
        masks=masks,
        exists=exists,
        seed=placed.seeds,
        member=(np.where(sparse, share, 0).astype(np.float32), placed.sizes),
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
