"""Trained networks of a pack: ranked, cut, rounded, scored."""

from collections.abc import Iterable, Sequence
import dataclasses
from typing import Any

import numpy as np

from minarch_jax.architectures import Architecture, Spec
from minarch_jax.compression import networks as hosts
from minarch_jax.compression import programs
from minarch_jax.compression.grid import Rule
from minarch_jax.compression.networks import Networks
from minarch_jax.compression.programs import Outcome
from minarch_jax.engine import packs
from minarch_jax.engine import session as sessions
from minarch_jax.engine.planning import Pack
from minarch_jax.engine.session import Placed, Session
from minarch_jax.pruning import criteria as criteria_lib
from minarch_jax.pruning import vectors as pruned_vectors
from minarch_jax.pruning.vectors import Groups
from minarch_jax.types import Params, TrainState

SCORED = ("validation", "test")


@dataclasses.dataclass
class Ranked:
  """Trained networks of a pack, and their weights ranked by each rule.

  Attributes:
    placed: the pack on its devices.
    networks: one per architecture.
    places: of each rule the places of groups, int32 [S, G] per architecture.
  """

  placed: Placed
  networks: list[np.ndarray]
  places: dict[Rule, list[np.ndarray]]


def rank(
  session: Session,
  pack: Pack,
  params: Sequence[Params],
  rules: Iterable[Rule],
) -> Ranked:
  """Ranks the weights of a pack's trained networks by every rule.

  Args:
    params: for each architecture a host tree of its true shapes, leading S.
    rules: may repeat.
  """
  placed = sessions.place(session, pack)
  networks = [
    hosts.vector_of(placed, architecture).of(tree)
    for architecture, tree in zip(pack.architectures, params, strict=True)
  ]
  rules = tuple(dict.fromkeys(rules))
  return Ranked(placed, networks, places_of(placed, rules, networks))


def groups_of(placed: Placed, architecture: Architecture, rule: Rule) -> Groups:
  """How a rule cuts a network."""
  return pruned_vectors.groups_of(
    architecture, placed.session.problem, rule.scope, rule.granularity
  )


def places_of(
  placed: Placed,
  rules: Sequence[Rule],
  networks: Networks,
  masks: Networks | None = None,
) -> dict[Rule, list[np.ndarray]]:
  """Ranks what masks have left of the networks in the slots of a pack.

  Rules of one criterion share its scores.

  Args:
    masks: bool [S, N] of each; those pruned before go first (None = none).
  """
  criteria = tuple(dict.fromkeys(rule.criterion for rule in rules))
  scores = hosts.scores(placed, networks, criteria)
  masks = masks or [np.ones(network.shape, bool) for network in networks]
  return {
    rule: [
      groups_of(placed, architecture, rule).rank(
        score, mask, criteria_lib.find(rule.criterion).pool
      )
      for architecture, score, mask in zip(
        placed.pack.architectures, scores[rule.criterion], masks, strict=True
      )
    ]
    for rule in rules
  }


def masks_of(
  placed: Placed,
  rule: Rule,
  places: Sequence[np.ndarray],
  sparsities: Sequence[float],
) -> list[np.ndarray]:
  """Marks what is kept of the network in each slot: bool [S, N].

  Args:
    places: of each network.
    sparsities: to which each is pruned.
  """
  found = []
  for architecture, own, sparsity in zip(
    placed.pack.architectures, places, sparsities, strict=True
  ):
    groups = groups_of(placed, architecture, rule)
    found.append(groups.masks(groups.marks(own, sparsity)))
  return found


def pruned(networks: Networks, masks: Networks) -> list[np.ndarray]:
  """Sets to 0 what masks leave out, in networks that have diverged too."""
  return [
    np.where(mask, network, np.float32(0))
    for network, mask in zip(networks, masks, strict=True)
  ]


@dataclasses.dataclass
class Scorer:
  """Scores placed networks one setting after the other.

  The program that trained the pack scores it, by running no epoch: another
  would cost a compilation per parent. It takes an optimizer state, of which
  scoring makes no use, and donates its arguments: the buffers that go in are
  overwritten by what comes out. So every call passes the optimizer state's
  buffers on to the next, instead of allocating two copies of the parameters per
  cell.

  Attributes:
    placed: the slots.
    masks: what of the slots exists and was kept, placed.
    opt_state: placed; that of the last call.
  """

  placed: Placed
  masks: Any
  opt_state: Any

  def score(self, networks: Networks, activation_bits: int) -> Outcome:
    """Scores networks: arrays [S, A, ...].

    Args:
      networks: in the slots, as they are.
      activation_bits: to which layers round their inputs; 32 = not, else
        another program scores.
    """
    placed = self.placed
    stack = hosts.stacked(placed, networks)
    params = placed.put(hosts.tree_of(placed, stack), "network")
    if activation_bits == 32:
      state = TrainState(params, self.opt_state)
      state, scores = packs.score(placed, state, self.masks, *SCORED)
      self.opt_state = state.opt_state
    else:
      scores = _score_rounded(placed, params, activation_bits)
    validation, test = scores
    parent = hosts.vector_of(placed, placed.pack.parent)
    return Outcome(
      validation.correct,
      test.correct,
      validation.hits,
      parent.counts(stack != 0),
    )


def scorer_of(ranked: Ranked) -> Scorer:
  """Makes the scorer of the slots of ranked networks."""
  placed = ranked.placed
  stack = hosts.stacked(placed, ranked.networks)
  state = packs.start_state(placed, hosts.tree_of(placed, stack))
  return Scorer(placed, packs.width_masks(placed), state.opt_state)


def _score_rounded(placed: Placed, params: Any, bits: int) -> list:
  """Scores placed networks whose layers round their inputs to so many bits."""
  session = placed.session
  totals = placed.run(
    programs.ROUNDED,
    static={
      "network": placed.network,
      "chunks": (session.splits[SCORED[0]][0], session.splits[SCORED[-1]][1]),
    },
    hot=sessions.is_long(placed),
    params=params,
    bits=np.int32(bits),
    sizes=placed.sizes,
    view=placed.view,
    data=session.data,
  )
  return packs.split_scores(placed, totals, SCORED)


def stack(outcomes: Sequence[Outcome], axis: int) -> Outcome:
  return Outcome(
    *(np.stack(parts, axis) for parts in zip(*outcomes, strict=True))
  )


def of_member(
  outcome: Outcome, index: int, spec: Spec, parent: Spec
) -> Outcome:
  """Cuts one member's results out: [S, cells], and the leaves that it has."""
  own = {leaf.path for leaf in spec.leaves}
  keep = [i for i, leaf in enumerate(parent.leaves) if leaf.path in own]
  own_part = Outcome(*(part[:, index] for part in outcome))
  return own_part._replace(nonzeros=own_part.nonzeros[..., keep])
