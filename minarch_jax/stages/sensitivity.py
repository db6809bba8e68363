"""Prunes trained packs one layer at a time, and compares the masks of seeds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from minarch_jax import records
from minarch_jax.architectures import Architecture, Spec
from minarch_jax.compression import grid as grids
from minarch_jax.compression import scoring
from minarch_jax.compression.grid import Rule
from minarch_jax.compression.scoring import Ranked
from minarch_jax.engine import packs
from minarch_jax.engine import session as sessions
from minarch_jax.engine.planning import Pack
from minarch_jax.engine.session import Session
from minarch_jax.executors import Task
from minarch_jax.executors.tasks import Heard
from minarch_jax.pruning.vectors import Groups
from minarch_jax.stages import rows as make_rows
from minarch_jax.stages import setup, store, train, working
from minarch_jax.stages.representatives import representatives
from minarch_jax.stages.working import Statistics

TABLES = ("sensitivity", "overlap")
Rows = tuple[pl.DataFrame, pl.DataFrame]  # of the two tables


class Measured(NamedTuple):
  """What became of a pack's networks, on the host.

  Attributes:
    pack: the description.
    networks: of each architecture.
  """

  pack: Pack
  networks: list["Network"]


class Network(NamedTuple):
  """What became of one architecture.

  Attributes:
    layers: which groups are those of each of the L layers, by name, from the
      input to the output.
    correct: int [S, L, K], validation images classified correctly with that
      layer alone pruned to that sparsity.
    kept: uint8 [S, K, bytes], the groups that global scope keeps, as bits.
  """

  layers: dict[str, slice]
  correct: np.ndarray
  kept: np.ndarray

  @property
  def groups(self) -> np.ndarray:
    """How many each layer has: int [L]."""
    return np.array([own.stop - own.start for own in self.layers.values()])


def chosen(session: Session, out: str) -> list[Architecture]:
  """Lists what is looked at: the architectures that flags name, else the
  representatives of those that `out` holds.

  Raises:
    ConfigError: `out` holds no network of this training recipe.
  """
  members = store.trained(session, out, records.read(out).networks)
  if session.config.architectures:
    return setup.select(session.config, session.problem)
  return representatives(session, out, members)


def complete(
  session: Session, out: str, members: Sequence[Architecture]
) -> Rows:
  """Measures the architectures that were not measured yet, and keeps it.

  Returns:
    The rows of the tables `sensitivity` and `overlap` of exactly those
    architectures, these seeds, this rule and these sparsities.

  Raises:
    ConfigError: a network is not in the results directory.
  """
  session = of_first_rule(session)
  recipe, seeds = setup.recipe_id(session), list(session.config.seeds)
  for pack in train.plan_missing(session, members, out):
    store.load_params(out, recipe, pack.architectures, pack.seeds)  # says which
  (rule,) = grids.rules_of(session.config)
  kind = [recipe, rule.criterion, rule.granularity, sparsities_of(session)]
  # Seeds that did not fit one pack are compared all the same.
  groups: dict[tuple[Architecture, ...], list[Pack]] = {}
  for pack in packs.plan(session, members, seeds):
    groups.setdefault(pack.architectures, []).append(pack)
  facts, tasks = setup.Facts.of(session), []
  for architectures, parts in groups.items():
    id = records.content_id([*kind, [str(a) for a in architectures], seeds])
    seconds = sum(train.seconds_of(facts, pack) for pack in parts)
    task = Task(
      *(_measure, out, id, TABLES, tuple(parts)), seconds=facts.wall(seconds)
    )
    if not task.done:
      tasks.append(task)
  working.run(session, "sensitivity", tasks)
  wanted = (
    (pl.col("run_id") == recipe)
    & (pl.col("criterion") == rule.criterion)
    & (pl.col("granularity") == rule.granularity)
    & pl.col("architecture").is_in([str(a) for a in members])
    & pl.col("sparsity").is_in(sparsities_of(session))
    & pl.col("seed").is_in(seeds)
  )
  found, overlap = (
    records.read_table(out, table).filter(wanted) for table in TABLES
  )
  return found, overlap.filter(pl.col("other").is_in(seeds))


def _measure(session: Session, task: Task, heard: Heard) -> list[Statistics]:
  """Measures packs and writes their rows."""
  found = measure(session, task.out, task.packs)
  for table, rows in zip(TABLES, found, strict=True):
    records.write(task.out, table, task.id, rows)
  heard(1.0)
  return []


def sparsities_of(session: Session) -> list[float]:
  """Lists the sparsities that layers are pruned to; the first is 0."""
  return sorted({0.0, *session.config.sparsities})


def of_first_rule(session: Session) -> Session:
  """Narrows a session to its first criterion and granularity, global scope."""
  return session.with_config(
    criteria=session.config.criteria[:1],
    granularities=session.config.granularities[:1],
    scopes=("global",),
  )


def measure(session: Session, out: str, parts: Sequence[Pack]) -> Rows:
  """Measures packs that hold all seeds of some architectures.

  Args:
    session: the data, and a configuration of one pruning rule.
    out: the results directory with the trained networks.
    parts: packs of one parent and the same architectures.

  Returns:
    Rows of the tables `sensitivity` and `overlap`.
  """
  measured = [
    found
    for pack in parts
    for found in sessions.in_parts(pack, lambda p: _measured(session, out, p))
  ]
  curves, overlaps = [], []
  for architecture in parts[0].architectures:
    of_seeds = [
      (found, found.pack.architectures.index(architecture))
      for found in measured
      if architecture in found.pack.architectures
    ]
    curves += [_curves(session, found, index) for found, index in of_seeds]
    overlaps.append(_overlaps(session, architecture, of_seeds))
  return pl.concat(curves), pl.concat(overlaps)


def _measured(session: Session, out: str, pack: Pack) -> Measured:
  recipe = setup.recipe_id(session)
  params = store.load_params(out, recipe, pack.architectures, pack.seeds)
  (rule,) = grids.rules_of(session.config)
  apart = rule._replace(scope="layerwise")
  ranked = scoring.rank(session, pack, params, [rule, apart])
  placed, layers = ranked.placed, []
  for architecture in pack.architectures:
    groups = scoring.groups_of(placed, architecture, apart)
    layers.append(_forward(groups, architecture.spec(session.problem)))
  correct = _alone(ranked, apart, [list(own) for own in layers])
  kept = [
    np.stack(
      [
        np.packbits(groups.marks(places, sparsity), axis=-1)
        for sparsity in sparsities_of(session)
      ],
      axis=1,
    )
    for groups, places in zip(
      (scoring.groups_of(placed, a, rule) for a in pack.architectures),
      ranked.places[rule],
      strict=True,
    )
  ]
  return Measured(pack, list(map(Network, layers, correct, kept)))


def _alone(
  ranked: Ranked, rule: Rule, layers: Sequence[Sequence[str]]
) -> list[np.ndarray]:
  """Scores networks with one layer after the other pruned alone.

  Args:
    rule: a layer-wise one.
    layers: of each architecture.

  Returns:
    int [S, L, K] of each architecture, right answers.
  """
  placed = ranked.placed
  session, pack = placed.session, placed.pack
  sparsities = sparsities_of(session)
  groups = [scoring.groups_of(placed, a, rule) for a in pack.architectures]
  marks = [
    [own.marks(places, sparsity) for sparsity in sparsities]
    for own, places in zip(groups, ranked.places[rule], strict=True)
  ]
  scorer = scoring.scorer_of(ranked)
  most = max(map(len, layers))
  correct = np.zeros(
    (len(ranked.networks[0]), pack.slots, most, len(sparsities))
  )
  for number, cell in np.ndindex(most, len(sparsities)):
    masks = []
    for own, names, each in zip(groups, layers, marks, strict=True):
      there = np.ones_like(each[cell])
      for name in names[number : number + 1]:  # none, where it has fewer
        part = own.layers[name]
        there[:, part] = each[cell][:, part]
      masks.append(own.masks(there))
    outcome = scorer.score(scoring.pruned(ranked.networks, masks), 32)
    correct[:, :, number, cell] = outcome.validation[: len(correct)]
  return [correct[:, slot, : len(names)] for slot, names in enumerate(layers)]


def _forward(groups: Groups, spec: Spec) -> dict[str, slice]:
  """Orders the layers of a network from the input to the output."""
  place = {leaf.path: i for i, leaf in enumerate(spec.leaves)}
  paths = sorted(place)  # leaves of a tree are ordered by name
  first = {
    layer.name: min(
      place[paths[member.leaf]] for member in layer.members if member.scored
    )
    for layer in groups.order.plan.layers
  }
  return {
    name: groups.layers[name] for name in sorted(first, key=first.__getitem__)
  }


def _curves(session: Session, found: Measured, index: int) -> pl.DataFrame:
  """Makes one row per seed, layer and sparsity of a pack's architecture."""
  network = found.networks[index]
  correct = network.correct
  seed, number, cell = (axis.ravel() for axis in np.indices(correct.shape))
  return pl.DataFrame(
    {
      "seed": np.array(found.pack.seeds)[seed],
      "layer": np.array(list(network.layers))[number],
      "number": number,
      "groups": network.groups[number],
      "sparsity": np.array(sparsities_of(session))[cell],
      "val_accuracy": correct.ravel()
      / session.sizes(found.pack.seeds, "validation")[seed],
    }
  ).with_columns(**_constants(session, found.pack.architectures[index]))


def _overlaps(
  session: Session,
  architecture: Architecture,
  of_seeds: Sequence[tuple[Measured, int]],
) -> pl.DataFrame:
  """Makes one row per pair of seeds, layer and sparsity of an architecture.

  Args:
    of_seeds: results that hold it, and its index there.
  """
  each = [found.networks[index] for found, index in of_seeds]
  groups, layers = each[0].groups, each[0].layers
  seeds = np.concatenate([found.pack.seeds for found, _ in of_seeds])
  bits = np.concatenate([network.kept for network in each])
  both = common(bits, list(layers.values()))
  a, b = np.triu_indices(len(seeds), 1)
  table = compared(both, groups, a, b)
  names = [*layers, records.ALL_LAYERS]
  number, cell, pair = (x.ravel() for x in np.indices(table.overlap.shape))
  return pl.DataFrame(
    {
      "seed": seeds[a][pair],
      "other": seeds[b][pair],
      "layer": np.array(names)[number],
      "number": number,
      "groups": np.append(groups, groups.sum())[number],
      "sparsity": np.array(sparsities_of(session))[cell],
    }
    | {name: value.ravel() for name, value in table._asdict().items()}
  ).with_columns(**_constants(session, architecture))


def common(bits: np.ndarray, layers: Sequence[slice]) -> np.ndarray:
  """Counts the groups that two seeds both keep.

  Args:
    bits: uint8 [S, K, bytes].
    layers: where each layer's groups are.

  Returns:
    float64 [L, K, S, S].
  """
  both = np.empty((len(layers), bits.shape[1], *2 * bits.shape[:1]))
  for k in range(bits.shape[1]):  # unpacked all at once they take 32 times
    marks = np.unpackbits(bits[:, k], axis=-1).astype(np.float32)
    for i, layer in enumerate(layers):  # exact: floats count to 16 million
      both[i, k] = marks[:, layer] @ marks[:, layer].T
  return both


class Overlap(NamedTuple):
  """How far two seeds keep the same: kept by both / kept by either.

  Attributes:
    overlap: as found.
    chance: of as many groups at random; of a fraction d each, d / (2 - d).
    shuffled: of both masks shuffled within their layers.
  """

  overlap: np.ndarray
  chance: np.ndarray
  shuffled: np.ndarray


def compared(
  both: np.ndarray, groups: np.ndarray, a: np.ndarray, b: np.ndarray
) -> Overlap:
  """Compares the masks of pairs of seeds, by layer and as a whole.

  What is random is taken at the expected number of groups that both keep.

  Args:
    both: [L, K, S, S], groups that two seeds both keep.
    groups: [L], those that exist.
    a, b: [P], the seeds of each pair.

  Returns:
    Overlap of arrays [L + 1, K, P]; the last row is the whole network.
  """
  kept = np.diagonal(both, axis1=2, axis2=3)
  one, other, met = kept[..., a], kept[..., b], both[..., a, b]
  by_chance = one * other / groups[:, None, None]

  def whole(counts):
    return np.concatenate([counts, counts.sum(0, keepdims=True)])

  one, other = whole(one), whole(other)
  apart = whole(by_chance)
  together = np.concatenate([by_chance, one[-1:] * other[-1:] / groups.sum()])

  def jaccard(common):
    either = one + other - common
    # As `pruning.jaccard`: nothing and nothing are the same.
    return np.where(either > 0, common / np.maximum(either, 1), 1.0)

  return Overlap(jaccard(whole(met)), jaccard(together), jaccard(apart))


def _constants(
  session: Session, architecture: Architecture
) -> dict[str, pl.Expr]:
  (rule,) = grids.rules_of(session.config)
  values = {
    **make_rows.identity(session, setup.recipe_id(session), architecture),
    "criterion": rule.criterion,
    "granularity": rule.granularity,
  }
  return {name: pl.lit(value) for name, value in values.items()}
