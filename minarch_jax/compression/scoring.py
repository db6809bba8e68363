"""Trained networks of a pack on their devices: ranked, cut, rounded, scored."""

from collections.abc import Iterable, Sequence
import dataclasses
from typing import Any

import jax
import numpy as np

from minarch_jax.architectures import Spec
from minarch_jax.compression import programs
from minarch_jax.compression.grid import Precision, Rule
from minarch_jax.compression.programs import Outcome
from minarch_jax.engine import packs
from minarch_jax.engine import session as sessions
from minarch_jax.engine.planning import Pack
from minarch_jax.engine.session import Placed, Session
from minarch_jax.quantization import Rounding
from minarch_jax.quantization.rounding import NEAREST
from minarch_jax.types import Params, TrainState

SCORED = ("validation", "test")


LARGE = 300_000  # parameters of a pack from which on fast transforms pay


@dataclasses.dataclass
class Ranked:
  """Trained networks of a pack, placed, and their weights ranked by each rule.

  Attributes:
    placed: the pack on its devices.
    params: host arrays [S, A, ...] in the parent's shapes.
    cuts: placed `positions.Cuts` by rule.
    levels: the sparsities cut at, float32, rising.
    roundings: those that its transform program knows; their places are data.
    masks: what exists of each member, placed.
  """

  placed: Placed
  params: Params
  cuts: dict[Rule, Any]
  levels: np.ndarray
  roundings: tuple[Rounding, ...]
  masks: Any

  def level(self, sparsity: Any) -> np.ndarray:
    """Numbers sparsities that were cut at: int32 of their shape.

    Raises:
      ValueError: the ranking was not cut there.
    """
    wanted = np.asarray(sparsity, np.float32)
    found = np.searchsorted(self.levels, wanted).astype(np.int32)
    if not np.array_equal(self.levels.take(found, mode="clip"), wanted):
      raise ValueError(f"sparsity {sparsity} is not one of {self.levels}")
    return found


def rank(
  session: Session,
  pack: Pack,
  params: Sequence[Params],
  rules: Iterable[Rule],
  sparsities: Iterable[float],
  roundings: Iterable[Rounding] = (Rounding(),),
) -> Ranked:
  """Places a pack's trained networks and ranks their weights by every rule.

  Args:
    params: for each architecture a host tree of its true shapes, leading S.
    rules: may repeat.
    sparsities: what the rankings will be cut at, besides 0.
    roundings: what transforms of these networks may ask for; may repeat, and
      hold some that only whole networks can be rounded by.
  """
  rules = tuple(dict.fromkeys(rules))
  levels = np.unique(np.array([0.0, *sparsities], np.float32))
  placed = sessions.place(session, pack)
  stacked = packs.stack_members(params, full_slots(pack, placed), session)
  stacked = repeated(stacked, placed)
  masks = packs.width_masks(placed)
  cuts = cut_at(placed, rules, stacked, masks, levels)
  nearest = [each for each in roundings if each.method == NEAREST]
  return Ranked(
    placed, stacked, cuts, levels, tuple(dict.fromkeys(nearest)), masks
  )


def cut_at(
  placed: Placed,
  rules: tuple[Rule, ...],
  params: Any,
  masks: Any,
  levels: np.ndarray,
) -> dict[Rule, Any]:
  """Ranks what masks have left of placed networks, and cuts at levels."""
  session = placed.session
  cuts = placed.run(
    programs.RANK,
    static={"network": placed.network, "rules": rules},
    hot=_large(placed),
    params=params,
    masks=masks,
    seed=placed.seeds,
    sizes=placed.sizes,
    levels=levels,
    view=placed.view,
    data=session.data,
  )
  return dict(zip(rules, cuts, strict=True))


def _large(placed: Placed) -> bool:
  return sessions.num_params(placed.pack, placed.session) > LARGE


def repeated(stacked: Params, placed: Placed) -> Params:
  """Repeats the last seed of host arrays [S, ...] where seeds are padded."""

  def repeat(leaf):
    extra = len(placed.pack.seeds) - len(leaf)
    return np.concatenate([leaf, *[leaf[-1:]] * extra])

  return jax.tree.map(repeat, stacked)


def full_slots(pack: Pack, placed: Placed) -> Pack:
  """A pack with the slots of its placement, but its own seeds."""
  return dataclasses.replace(placed.pack, seeds=pack.seeds)


def transform(
  ranked: Ranked,
  placed: Placed,
  params: Any,
  cuts: Any,
  level: np.ndarray,
  precision: Precision,
) -> tuple[Any, Any, Any]:
  """Prunes and rounds placed networks.

  Args:
    ranked: knows the roundings.
    placed: the slots that hold the networks; the ranked ones or others.
    params, cuts: placed, of these slots.
    level: int32 [A], which of the cuts.
    precision: how what is left is rounded.

  Returns:
    Parameters, masks, and int32 [S, A, leaves] entries that are not zero.
  """
  return placed.run(
    programs.TRANSFORM,
    static={"network": placed.network, "roundings": ranked.roundings},
    hot=_large(placed),
    params=params,
    cuts=cuts,
    level=level,
    bits=np.int32(precision.bits),
    rounding=np.int32(ranked.roundings.index(precision.rounding)),
    sizes=placed.sizes,
  )


@dataclasses.dataclass
class Scorer:
  """Scores placed networks one setting after the other.

  The program that trained the pack scores it, by running no epoch: another
  would cost a compilation per parent. It takes an optimizer state, of which
  scoring makes no use, and donates its arguments: the buffers that go in are
  overwritten by what comes out. So every call consumes the parameters that it
  scores, which `transform` made for it alone, and passes the optimizer state's
  buffers on to the next call, instead of allocating two copies of the
  parameters per cell.

  Attributes:
    placed: the slots.
    masks: what of the slots exists and was kept, placed.
    opt_state: placed; that of the last call.
  """

  placed: Placed
  masks: Any
  opt_state: Any

  def score(self, params: Any, nonzeros: Any, activation_bits: int) -> Outcome:
    """Scores networks and consumes them: arrays [S, A, ...].

    Args:
      params: what `transform` returned; its buffers are gone afterwards, except
        where layers round their inputs, which another program scores.
      nonzeros: entries that are not zero, int [S, A, leaves].
      activation_bits: to which layers round their inputs; 32 = not.
    """
    if activation_bits == 32:
      state = TrainState(params, self.opt_state)
      state, scores = packs.score(self.placed, state, self.masks, *SCORED)
      self.opt_state = state.opt_state
    else:
      scores = _score_rounded(self.placed, params, activation_bits)
    validation, test = scores
    return Outcome(
      validation.correct,
      test.correct,
      validation.hits,
      jax.device_get(nonzeros),
    )


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
