"""Compresses packs: the grid of cells, and retraining after pruning."""

from collections.abc import Sequence
import dataclasses
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from minarch_jax import compression, packs, population, training
from minarch_jax.compression import Cells, Outcome, Rule
from minarch_jax.config import Config
from minarch_jax.packs import Session
from minarch_jax.planning import Pack
from minarch_jax.types import Batch, Params

CRITERION_CHUNKS = 4  # training chunks that data-dependent criteria look at


def rules_of(config: Config) -> tuple[Rule, ...]:
  """Lists the pruning rules of a configuration; the first is the main one."""
  return tuple(
    Rule(criterion, scope, granularity)
    for granularity in config.granularities
    for criterion in config.criteria
    for scope in config.scopes
  )


class Compressed(NamedTuple):
  """What happened to networks, and the seconds it took."""

  outcome: Outcome
  compile_seconds: float
  run_seconds: float


@dataclasses.dataclass
class _Networks:
  """Placed networks of a pack and the compile seconds spent on them."""

  session: Session
  pack: Pack
  layout: population.Mapping
  params: Any
  seeds: Any
  sizes: Any
  compile_seconds: float = 0.0

  @property
  def spec(self):
    work = self.session.work
    return self.pack.parent.spec(work.input_shape, work.num_classes)

  def run(self, name, make, *arguments) -> Any:
    """Runs a program of this pack, compiling it the first time."""
    call, spent = packs.program(
      self.session, name, self.pack, make, arguments, self.layout
    )
    self.compile_seconds += spent
    return call(*arguments)

  def place(self, value: Any, kind: str) -> Any:
    return population.place(value, kind, self.layout)


def _place(session: Session, pack: Pack, params: Sequence[Params]) -> _Networks:
  layout = packs.layout_of(session, pack)
  full = packs.padded(pack, layout)
  stacked = packs.stack_members(
    params, dataclasses.replace(full, seeds=pack.seeds), session
  )
  extra = len(full.seeds) - len(pack.seeds)
  stacked = jax.tree.map(
    lambda leaf: np.concatenate([leaf, *[leaf[-1:]] * extra]), stacked
  )
  return _Networks(
    session,
    full,
    layout,
    population.place(stacked, "network", layout),
    population.place(np.array(full.seeds, np.int32), "seed", layout),
    population.place(packs.sizes_of(full, session), "member", layout),
  )


def _rank(networks: _Networks) -> tuple:
  """Ranks the weights by every rule."""
  session = networks.session

  def make():
    rank = compression.make_rank(
      packs.model_of(session, networks.pack, networks.layout),
      networks.spec,
      rules_of(session.config),
    )

    def function(params, seed, sizes, data):
      first = jax.tree.map(lambda leaf: leaf[:CRITERION_CHUNKS], data)
      batch = Batch(
        *(part.reshape(-1, *part.shape[2:]) for part in (first.x, first.y))
      )
      return rank(params, seed, sizes, batch)

    return function, ("network", "seed", "member", "shared"), ()

  return networks.run(
    "rank",
    make,
    networks.params,
    networks.seeds,
    networks.sizes,
    session.data,
  )


def _cut(networks: _Networks, order: Any, sparsity: np.ndarray) -> Any:
  """Makes the masks of a sparsity for each member, float32 [A]."""
  return networks.run(
    "cut",
    lambda: (compression.cut, ("network", "member"), ()),
    order,
    networks.place(sparsity.astype(np.float32), "member"),
  )


def _score(
  networks: _Networks, params: Any, masks: Any, bits: int, share: str
) -> Outcome:
  """Rounds and scores: arrays [S, A] and [S, A, leaves]."""
  rounded, nonzeros = networks.run(
    f"round {share}",
    lambda: (
      compression.make_round(networks.spec, share),
      ("network", "network", "shared"),
      (),
    ),
    params,
    masks,
    networks.place(np.int32(bits), "shared"),
  )
  (validation, test), spent = packs.score(
    networks.session,
    networks.pack,
    networks.layout,
    rounded,
    networks.sizes,
    "validation",
    "test",
  )
  networks.compile_seconds += spent
  return Outcome(
    np.asarray(validation.correct),
    np.asarray(test.correct),
    jax.device_get(nonzeros),
  )


def _stack(outcomes: Sequence[Outcome]) -> Outcome:
  return Outcome(*(np.stack(p, axis=2) for p in zip(*outcomes, strict=True)))


def grid(
  session: Session, pack: Pack, params: Sequence[Params], cells: Cells
) -> Compressed:
  """Scores every network of a pack in every cell of a grid.

  Args:
    params: for each architecture a host tree of its true shapes, leading S.
    cells: the grid; neighbouring cells of one (rule, sparsity) share a cut.
  """
  start = time.perf_counter()
  networks = _place(session, pack, params)
  orders = _rank(networks)
  outcomes, last, masks = [], None, None
  for rule, sparsity, bits, share in zip(
    *(column.tolist() for column in cells), strict=True
  ):
    if (rule, sparsity) != last:
      every = np.full(networks.pack.slots, sparsity)
      masks, last = _cut(networks, orders[rule], every), (rule, sparsity)
    outcomes.append(
      _score(
        networks,
        networks.params,
        masks,
        bits,
        session.config.quant_granularities[share],
      )
    )
  keep = (slice(len(pack.seeds)), slice(len(pack.architectures)))
  outcome = Outcome(*(part[keep] for part in _stack(outcomes)))
  seconds = time.perf_counter() - start
  compiling = networks.compile_seconds
  return Compressed(outcome, compiling, seconds - compiling)


class Variant(NamedTuple):
  """One retraining: which member of the pack, pruned by which rule."""

  member: int
  rule: int
  sparsity: float


def finetune(
  session: Session,
  pack: Pack,
  params: Sequence[Params],
  variants: Sequence[Variant],
  settings: Sequence[tuple[int, int]],
) -> Compressed:
  """Prunes once, retrains for equal steps, and scores at each precision.

  The variants take the pack's slots, as many at a time as there are, so the
  programs that trained the pack also retrain it.

  Args:
    params: as for `grid`.
    variants: what to retrain, those of one rule together; sparsity 0 is the
      control of equal steps.
    settings: (bits, share) pairs scored after retraining.

  Returns:
    Outcome arrays [S, variants, settings].
  """
  start = time.perf_counter()
  parts, compiling = [], 0.0
  for rule in dict.fromkeys(variant.rule for variant in variants):
    group = [variant for variant in variants if variant.rule == rule]
    for first in range(0, len(group), pack.slots):
      part, spent = _finetune_slots(
        session, pack, params, group[first : first + pack.slots], settings
      )
      parts.append(part)
      compiling += spent
  outcome = Outcome(*(np.concatenate(p, 1) for p in zip(*parts, strict=True)))
  seconds = time.perf_counter() - start
  return Compressed(outcome, compiling, seconds - compiling)


def _finetune_slots(session, pack, params, variants, settings):
  """Retrains as many variants of one rule as the pack has slots."""
  config = session.config
  chosen = dataclasses.replace(
    pack, architectures=tuple(pack.architectures[v.member] for v in variants)
  )
  networks = _place(session, chosen, [params[v.member] for v in variants])
  sparsity = [v.sparsity for v in variants]
  sparsity += sparsity[-1:] * (networks.pack.slots - len(sparsity))
  order = _rank(networks)[variants[0].rule]
  cut = _cut(networks, order, np.array(sparsity))
  state, masks = networks.run(
    "start",
    lambda: (
      compression.make_start(networks.spec, training.make_tx(config)),
      ("network", "network", "member"),
      (),
    ),
    networks.params,
    cut,
    networks.sizes,
  )
  steps = session.work.num_train // session.work.batch_size
  rates = np.full(
    (config.finetune_epochs, steps), config.finetune_learning_rate, np.float32
  )
  state, _, spent = packs.run_epochs(
    session,
    networks.pack,
    networks.layout,
    state,
    networks.sizes,
    masks,
    rates,
    first_epoch=config.num_epochs,
  )
  outcomes = [
    _score(networks, state.params, cut, bits, config.quant_granularities[share])
    for bits, share in settings
  ]
  keep = (slice(len(chosen.seeds)), slice(len(variants)))
  outcome = Outcome(*(part[keep] for part in _stack(outcomes)))
  return outcome, networks.compile_seconds + spent
