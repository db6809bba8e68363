"""Compresses packs: the grid of cells, and retraining after pruning."""

from collections.abc import Iterable, Sequence
import dataclasses
import time
from typing import Any

import jax
import numpy as np

from minarch_jax import pruning, records
from minarch_jax.architectures import Spec
from minarch_jax.compression import grid as grids
from minarch_jax.compression import programs
from minarch_jax.compression.grid import Cells, Variant
from minarch_jax.compression.programs import Outcome
from minarch_jax.engine import evaluation, packs, training
from minarch_jax.engine import session as sessions
from minarch_jax.engine.planning import Pack
from minarch_jax.engine.session import Placed, Session
from minarch_jax.types import Batch, Params, TrainState

CRITERION_CHUNKS = 4  # training chunks that criteria and ranges look at
SCORED = ("validation", "test")
LARGE = 300_000  # parameters of a pack from which on fast transforms pay


@dataclasses.dataclass
class Ranked:
  """Trained networks of a pack, placed, and their weights ranked by each rule.

  Attributes:
    placed: the pack on its devices.
    params: host arrays [S, A, ...] in the parent's shapes.
    cuts: one placed `positions.Cuts` per rule.
    levels: the sparsities cut at, float32, rising.
    masks: what exists of each member, placed.
  """

  placed: Placed
  params: Params
  cuts: tuple
  levels: np.ndarray
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
  sparsities: Iterable[float],
) -> Ranked:
  """Places a pack's trained networks and ranks their weights by every rule.

  Args:
    params: for each architecture a host tree of its true shapes, leading S.
    sparsities: what the rankings will be cut at, besides 0.
  """
  levels = np.unique(np.array([0.0, *sparsities], np.float32))
  placed = sessions.place(session, pack)
  full, seeds = placed.pack, placed.pack.seeds
  stacked = packs.stack_members(
    params, dataclasses.replace(full, seeds=pack.seeds), session
  )
  extra = len(seeds) - len(pack.seeds)
  stacked = jax.tree.map(
    lambda leaf: np.concatenate([leaf, *[leaf[-1:]] * extra]), stacked
  )

  def make():
    ranking = programs.make_rank(
      placed.model, placed.spec, grids.rules_of(session.config)
    )

    def function(params, seed, sizes, levels, data):
      return ranking(params, seed, sizes, levels, _leading(session, data))

    return function, ("network", "seed", "member", "shared", "shared"), ()

  cuts = placed.run(
    "rank",
    make,
    placed.put(stacked, "network"),
    placed.put(np.array(seeds, np.int32), "seed"),
    placed.sizes,
    placed.put(levels, "shared"),
    session.data,
    hot=_large(placed),
  )
  return Ranked(placed, stacked, cuts, levels, packs.width_masks(placed))


def _leading(session: Session, data: evaluation.Chunks) -> Batch:
  """Takes the leading training images, which are the data's first."""
  count = min(CRITERION_CHUNKS * data.y.shape[1], session.work.num_train)
  return Batch(
    *(part.reshape(-1, *part.shape[2:])[:count] for part in (data.x, data.y))
  )


def _large(placed: Placed) -> bool:
  return sessions.num_params(placed.pack, placed.session) > LARGE


def _transform(
  placed: Placed,
  params: Any,
  cuts: Any,
  level: np.ndarray,
  bits: int,
  rounding: int,
) -> tuple:
  """Prunes and rounds placed networks; level int32 [A]."""
  roundings = grids.roundings_of(placed.session.config)

  def make():
    return (
      programs.make_transform(placed.spec, roundings),
      ("network", "network", "member", "shared", "shared", "member"),
      (),
    )

  return placed.run(
    "transform",
    make,
    params,
    cuts,
    placed.put(level, "member"),
    placed.put(np.int32(bits), "shared"),
    placed.put(np.int32(rounding), "shared"),
    placed.sizes,
    hot=_large(placed),
  )


def of_member(
  outcome: Outcome, index: int, spec: Spec, parent: Spec
) -> Outcome:
  """Cuts one member's results out: [S, cells], and the leaves that it has."""
  own = {leaf.path for leaf in spec.leaves}
  keep = [i for i, leaf in enumerate(parent.leaves) if leaf.path in own]
  validation, test, nonzeros = (part[:, index] for part in outcome)
  return Outcome(validation, test, nonzeros[..., keep])


def _stack(outcomes: Sequence[Outcome], axis: int) -> Outcome:
  return Outcome(
    *(np.stack(parts, axis) for parts in zip(*outcomes, strict=True))
  )


def grid(ranked: Ranked, pack: Pack, cells: Cells) -> Outcome:
  """Scores every network of a pack in every cell of a grid.

  Returns:
    Outcome arrays [S, A, cells].
  """
  placed = ranked.placed
  params = placed.put(ranked.params, "network")
  opt_state = packs.start_state(placed, params).opt_state
  outcomes = []
  for rule, sparsity, bits, rounding, activation_bits in zip(
    *(column.tolist() for column in cells), strict=True
  ):
    level = np.full(placed.pack.slots, ranked.level(sparsity))
    outcome, opt_state = _score(
      *(placed, params, ranked.cuts[rule], level, bits, rounding),
      *(opt_state, ranked.masks, activation_bits),
    )
    outcomes.append(outcome)
  keep = (slice(len(pack.seeds)), slice(len(pack.architectures)))
  return Outcome(*(part[keep] for part in _stack(outcomes, 2)))


def _score(
  placed,
  params,
  cuts,
  level,
  bits,
  rounding,
  opt_state,
  masks,
  activation_bits=32,
) -> tuple[Outcome, Any]:
  """Prunes, rounds and scores: arrays [S, A, ...], and the optimizer state,
  whose buffers the program consumed."""
  rounded, _, nonzeros = _transform(placed, params, cuts, level, bits, rounding)
  if activation_bits == 32:
    state, scores = packs.score(
      placed, TrainState(rounded, opt_state), masks, *SCORED
    )
    opt_state = state.opt_state
  else:
    scores = _score_rounded(placed, rounded, activation_bits)
  validation, test = scores
  outcome = Outcome(
    np.asarray(validation.correct),
    np.asarray(test.correct),
    jax.device_get(nonzeros),
  )
  return outcome, opt_state


def _score_rounded(
  placed: Placed, params: Any, bits: int
) -> list[evaluation.Score]:
  """Scores placed networks whose layers round their inputs to so many bits."""
  session = placed.session

  def make():
    totals = programs.make_rounded_totals(placed.model)
    first, last = session.splits[SCORED[0]][0], session.splits[SCORED[-1]][1]

    def function(params, bits, sizes, data):
      x = _leading(session, data).x
      return totals(params, bits, sizes, x, data, first, last)

    return function, ("network", "shared", "member", "shared"), ()

  totals = placed.run(
    "rounded",
    make,
    params,
    placed.put(np.int32(bits), "shared"),
    placed.sizes,
    session.data,
    hot=sessions.is_long(placed),
  )
  return packs.split_scores(session, totals, SCORED)


def retrain(
  ranked: Ranked,
  pack: Pack,
  variants: Sequence[Variant],
  settings: Sequence[tuple[int, int]],
) -> Outcome:
  """Prunes once, retrains for equal steps, and scores at each precision.

  The variants take the pack's slots, as many at a time as there are, so the
  program that trained the pack also retrains it.

  Args:
    ranked: the trained networks.
    variants: what to retrain, those of one rule together; sparsity 0 is the
      control of equal steps.
    settings: (bits, rounding) pairs scored after retraining.

  Returns:
    Outcome arrays [S, variants, settings].
  """
  parts = []
  for kind in dict.fromkeys((v.rule, v.control) for v in variants):
    group = [v for v in variants if (v.rule, v.control) == kind]
    cuts = jax.device_get(ranked.cuts[kind[0]])
    for first in range(0, len(group), pack.slots):
      some = group[first : first + pack.slots]
      part = _retrain_slots(ranked, pack, cuts, some, settings)
      parts.append(part)
  return Outcome(*(np.concatenate(p, 1) for p in zip(*parts, strict=True)))


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


def _retrain_slots(ranked, pack, cuts, variants, settings) -> Outcome:
  """Retrains as many variants of one rule and control as the pack has slots."""
  session = ranked.placed.session
  chosen = dataclasses.replace(
    pack, architectures=tuple(pack.architectures[v.member] for v in variants)
  )
  placed = sessions.place(session, chosen)
  missing = placed.pack.slots - len(variants)
  filled = [*variants, *[variants[-1]] * missing]
  members = [v.member for v in filled]
  level = ranked.level([v.sparsity for v in filled])

  def pick(tree):
    tree = jax.tree.map(lambda leaf: leaf[:, members], tree)
    return placed.put(tree, "network")

  cuts = pick(cuts)
  params, masks, _ = _transform(placed, pick(ranked.params), cuts, level, 32, 0)
  control = variants[0].control
  anew = grids.CONTROLS.get(control, False)
  if control != records.NONE:
    source = _drawn_again(placed) if anew else pick(ranked.params)
    params, masks = _controlled(placed, control, source, masks)
  state = packs.start_state(placed, params)
  if anew:
    rates = packs.rates_of(session)
    state, _, _ = packs.train_epochs(placed, state, masks, rates)
  state, _, _ = packs.train_epochs(
    placed,
    state,
    masks,
    retraining_rates(session),
    first_epoch=session.config.num_epochs,
  )
  outcomes, opt_state = [], state.opt_state
  for bits, rounding in settings:
    # What was pruned has stayed zero: nothing is left to remove.
    outcome, opt_state = _score(
      *(placed, state.params, cuts, np.zeros_like(level), bits, rounding),
      *(opt_state, masks),
    )
    outcomes.append(outcome)
  ranked.placed.compile_seconds += placed.compile_seconds
  keep = (slice(len(chosen.seeds)), slice(len(variants)))
  return Outcome(*(part[keep] for part in _stack(outcomes, 2)))


def _drawn_again(placed: Placed) -> Any:
  return placed.put(packs.initial(placed, training.AGAIN), "network")


def _controlled(placed: Placed, control: str, params: Any, masks: Any):
  """Makes a control of found masks: (masked parameters, masks)."""

  def make():
    def function(params, masks, seed, exists):
      if control == "shuffled":
        key = training.key_for(seed, training.AGAIN)
        masks = pruning.shuffled(masks, key, exists)
      return pruning.apply_masks(params, masks), masks

    return function, ("network", "network", "seed", "network"), ()

  return placed.run(
    control,
    make,
    params,
    masks,
    placed.put(np.array(placed.pack.seeds, np.int32), "seed"),
    packs.width_masks(placed),
  )


def compress(
  session: Session,
  pack: Pack,
  params: Sequence[Params],
  cells: Cells,
  variants: Sequence[Variant],
  settings: Sequence[tuple[int, int]],
) -> tuple[Outcome, Outcome | None, float, float]:
  """Scores a pack's networks one-shot in every cell, and retrained.

  Args:
    session: the data and programs.
    params: for each architecture a host tree of its true shapes, leading S.
    cells: the one-shot grid.
    variants, settings: as for `retrain`; no variants, no retraining.

  Returns:
    Outcome [S, A, cells], Outcome [S, variants, settings] or None, and the
    seconds of compiling and of running.
  """
  start = time.perf_counter()
  sparsities = {*cells.sparsity.tolist(), *(v.sparsity for v in variants)}
  ranked = rank(session, pack, params, sparsities)
  graded = grid(ranked, pack, cells)
  retrained = retrain(ranked, pack, variants, settings) if variants else None
  seconds = time.perf_counter() - start
  compiling = ranked.placed.compile_seconds
  return graded, retrained, compiling, seconds - compiling
