"""Compresses packs: the grid of cells, and retraining after pruning.

A pack's weights are ranked once by every rule, and each ranking is cut at every
sparsity (`Ranked`). Two calls of programs are a cell of the grid: `transform`
chooses a cut and rounds, which makes new parameters, and `Scorer` scores these.
Retraining puts the pruned networks into the slots of the same pack, trains them
by the program that trained it, and scores them likewise. What a cell is enters
programs as data (which cut, how many bits, which rounding): no cell and no
retraining costs a compilation.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from minarch_jax import random, records
from minarch_jax.architectures import Spec
from minarch_jax.compression import grid as grids
from minarch_jax.compression import programs
from minarch_jax.compression.grid import Cell, Precision, Retraining, Rule
from minarch_jax.compression.programs import Outcome
from minarch_jax.engine import packs
from minarch_jax.engine import session as sessions
from minarch_jax.engine.planning import Pack
from minarch_jax.engine.session import Placed, Session
from minarch_jax.quantization import Rounding
from minarch_jax.types import Params, TrainState

CRITERION_CHUNKS = 4  # training chunks that criteria and ranges look at
SCORED = ("validation", "test")
LARGE = 300_000  # parameters of a pack from which on fast transforms pay


class Compressed(NamedTuple):
  """What compressing a pack gave.

  Attributes:
    oneshot: Outcome arrays [S, A, cells].
    retrained: Outcome arrays [S, retrainings, precisions]; None without any.
    compile_seconds, run_seconds: wall time.
  """

  oneshot: Outcome
  retrained: Outcome | None
  compile_seconds: float
  run_seconds: float


def compress(
  session: Session,
  pack: Pack,
  params: Sequence[Params],
  cells: Sequence[Cell],
  retrainings: Sequence[Retraining],
  precisions: Sequence[Precision],
) -> Compressed:
  """Scores a pack's networks one-shot in every cell, and retrained.

  Args:
    session: the data and programs.
    params: for each architecture a host tree of its true shapes, leading S.
    cells: the one-shot grid.
    retrainings: of the pack's architectures; none, no retraining.
    precisions: what is scored after each retraining.
  """
  start = time.perf_counter()
  ranked = rank(
    session,
    pack,
    params,
    [*(cell.rule for cell in cells), *(each.rule for each in retrainings)],
    [*(c.sparsity for c in cells), *(each.sparsity for each in retrainings)],
    [*(cell.precision.rounding for cell in cells)]
    + [precision.rounding for precision in precisions],
  )
  oneshot = score_cells(ranked, pack, cells)
  retrained = None
  if retrainings:
    retrained = retrain(ranked, pack, retrainings, precisions)
  seconds = time.perf_counter() - start
  compiling = ranked.placed.compile_seconds
  return Compressed(oneshot, retrained, compiling, seconds - compiling)


# --- ranking -----------------------------------------------------------------


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
    roundings: what transforms of these networks may ask for; may repeat.
  """
  rules = tuple(dict.fromkeys(rules))
  levels = np.unique(np.array([0.0, *sparsities], np.float32))
  placed = sessions.place(session, pack)
  stacked = _stacked(placed, pack, params)
  cuts = placed.run(
    programs.RANK,
    static={
      "network": placed.network,
      "rules": rules,
      "images": _images(session),
    },
    hot=_large(placed),
    params=stacked,
    seed=placed.seeds,
    sizes=placed.sizes,
    levels=levels,
    data=session.data,
  )
  return Ranked(
    placed,
    stacked,
    dict(zip(rules, cuts, strict=True)),
    levels,
    tuple(dict.fromkeys(roundings)),
    packs.width_masks(placed),
  )


def _stacked(placed: Placed, pack: Pack, params: Sequence[Params]) -> Params:
  """Stacks members to [S, A, ...] and repeats the last seed and member until
  there are as many as the devices divide."""
  full = dataclasses.replace(placed.pack, seeds=pack.seeds)
  stacked = packs.stack_members(params, full, placed.session)
  extra = len(placed.pack.seeds) - len(pack.seeds)
  return jax.tree.map(
    lambda leaf: np.concatenate([leaf, *[leaf[-1:]] * extra]), stacked
  )


def _images(session: Session) -> int:
  """How many leading training images criteria and ranges look at."""
  chunk = session.data.y.shape[1]
  return min(CRITERION_CHUNKS * chunk, session.work.num_train)


def _large(placed: Placed) -> bool:
  return sessions.num_params(placed.pack, placed.session) > LARGE


# --- one cell of placed networks ---------------------------------------------


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
      nonzeros: as `transform` counted them.
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
      np.asarray(validation.correct),
      np.asarray(test.correct),
      jax.device_get(nonzeros),
    )


def _score_rounded(placed: Placed, params: Any, bits: int) -> list:
  """Scores placed networks whose layers round their inputs to so many bits."""
  session = placed.session
  totals = placed.run(
    programs.ROUNDED,
    static={
      "network": placed.network,
      "images": _images(session),
      "chunks": (session.splits[SCORED[0]][0], session.splits[SCORED[-1]][1]),
    },
    hot=sessions.is_long(placed),
    params=params,
    bits=np.int32(bits),
    sizes=placed.sizes,
    data=session.data,
  )
  return packs.split_scores(session, totals, SCORED)


def _stack(outcomes: Sequence[Outcome], axis: int) -> Outcome:
  return Outcome(
    *(np.stack(parts, axis) for parts in zip(*outcomes, strict=True))
  )


def of_member(
  outcome: Outcome, index: int, spec: Spec, parent: Spec
) -> Outcome:
  """Cuts one member's results out: [S, cells], and the leaves that it has."""
  own = {leaf.path for leaf in spec.leaves}
  keep = [i for i, leaf in enumerate(parent.leaves) if leaf.path in own]
  validation, test, nonzeros = (part[:, index] for part in outcome)
  return Outcome(validation, test, nonzeros[..., keep])


# --- one-shot ----------------------------------------------------------------


def score_cells(ranked: Ranked, pack: Pack, cells: Sequence[Cell]) -> Outcome:
  """Scores every network of a pack in every cell of a grid.

  Returns:
    Outcome arrays [S, A, cells].
  """
  placed = ranked.placed
  params = placed.put(ranked.params, "network")
  opt_state = packs.start_state(placed, params).opt_state
  scorer = Scorer(placed, ranked.masks, opt_state)
  outcomes = []
  for rule, sparsity, precision in cells:
    level = np.full(placed.pack.slots, ranked.level(sparsity))
    cut = ranked.cuts[rule]
    rounded, _, nonzeros = transform(
      ranked, placed, params, cut, level, precision
    )
    outcomes.append(scorer.score(rounded, nonzeros, precision.activation_bits))
  keep = (slice(len(pack.seeds)), slice(len(pack.architectures)))
  return Outcome(*(part[keep] for part in _stack(outcomes, 2)))


# --- retraining --------------------------------------------------------------


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
    retrainings: those of one rule and control together; sparsity 0 is the
      control of equal steps.
    precisions: what is scored after retraining.

  Returns:
    Outcome arrays [S, retrainings, precisions].
  """
  parts = []
  for rule, control in dict.fromkeys((r.rule, r.control) for r in retrainings):
    group = [r for r in retrainings if (r.rule, r.control) == (rule, control)]
    cuts = jax.device_get(ranked.cuts[rule])
    for first in range(0, len(group), pack.slots):
      some = group[first : first + pack.slots]
      parts.append(_retrain_slots(ranked, pack, cuts, some, precisions))
  return Outcome(*(np.concatenate(p, 1) for p in zip(*parts, strict=True)))


def _retrain_slots(
  ranked: Ranked,
  pack: Pack,
  cuts: Any,
  retrainings: Sequence[Retraining],
  precisions: Sequence[Precision],
) -> Outcome:
  """Retrains as many networks of one rule and control as the pack has slots.

  Args:
    cuts: of that rule, on the host; one program serves every rule.
  """
  session = ranked.placed.session
  # The same parent and number of slots, hence the same programs; an
  # architecture stands in a slot for each sparsity.
  chosen = dataclasses.replace(
    pack, architectures=tuple(each.architecture for each in retrainings)
  )
  placed = sessions.place(session, chosen)
  missing = placed.pack.slots - len(retrainings)
  filled = [*retrainings, *[retrainings[-1]] * missing]
  members = [pack.architectures.index(each.architecture) for each in filled]

  def pick(tree: Any) -> Any:
    tree = jax.tree.map(lambda leaf: leaf[:, members], tree)
    return placed.put(tree, "network")

  cuts = pick(cuts)
  level = ranked.level([each.sparsity for each in filled])
  dense = Precision(32, ranked.roundings[0])
  params, masks, _ = transform(
    ranked, placed, pick(ranked.params), cuts, level, dense
  )
  control = retrainings[0].control
  if control != records.NONE:
    new = grids.CONTROLS[control]
    source = _drawn_again(placed) if new else pick(ranked.params)
    params, masks = _controlled(placed, control, source, masks)
  state = _retrained(placed, control, params, masks)
  scorer = Scorer(placed, masks, state.opt_state)
  outcomes = []
  for precision in precisions:
    # What was pruned has stayed zero: nothing is left to remove, and level 0,
    # which removes nothing, serves every sparsity.
    rounded, _, nonzeros = transform(
      ranked, placed, state.params, cuts, np.zeros_like(level), precision
    )
    outcomes.append(scorer.score(rounded, nonzeros, precision.activation_bits))
  ranked.placed.compile_seconds += placed.compile_seconds
  keep = (slice(len(chosen.seeds)), slice(len(retrainings)))
  return Outcome(*(part[keep] for part in _stack(outcomes, 2)))


def _drawn_again(placed: Placed) -> Any:
  """Draws other initial weights than those that were trained, placed."""
  return placed.put(packs.initial(placed, random.Purpose.AGAIN), "network")


def _controlled(
  placed: Placed, control: str, params: Any, masks: Any
) -> tuple[Any, Any]:
  """Makes a control of pruned networks: masked parameters, and masks.

  Args:
    control: a key of `grids.CONTROLS`.
    params: placed, what is masked.
    masks: placed, as found by pruning.
  """
  return placed.run(
    programs.CONTROL,
    static={"control": control},
    params=params,
    masks=masks,
    seed=placed.seeds,
    exists=packs.width_masks(placed),
  )


def _retrained(
  placed: Placed, control: str, params: Any, masks: Any
) -> TrainState:
  """Trains pruned networks on, with a fresh optimizer state.

  Their minibatches go on after those of the training. New weights first take
  all steps of the training, to have seen as many in the end.
  """
  session = placed.session
  state = packs.start_state(placed, params)
  if grids.CONTROLS.get(control, False):
    rates = packs.rates_of(session)
    state, _, _ = packs.train_epochs(placed, state, masks, rates)
  state, _, _ = packs.train_epochs(
    placed,
    state,
    masks,
    retraining_rates(session),
    first_epoch=session.config.num_epochs,
  )
  return state
