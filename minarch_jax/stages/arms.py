"""Further arms of a study: networks that answer what the sweep leaves open.

* confirmation: fresh seeds of what the sweep chose, at and below the minimal
  size, and of what it found to be most redundant. What was chosen for being
  extreme is less so in truth; seeds that did not choose say how much.
* harder: the same images degraded, where a study has one data set.
* overfitting: noisy labels, a constant learning rate and longer training,
  which make a regime reachable that the sweep's own recipe avoids.

An arm takes the slots of the sweep's packs, so it compiles next to nothing. Its
networks are recorded as its own (`arm`): no analysis but the claims that ask
for them looks at them.
"""

from collections.abc import Sequence
import dataclasses
import math
from typing import NamedTuple

import polars as pl

from minarch_jax import data, records
from minarch_jax.architectures import Architecture, Problem
from minarch_jax.compression import grid as grids
from minarch_jax.config import Config
from minarch_jax.engine import packs
from minarch_jax.engine.planning import Pack, Work
from minarch_jax.engine.session import Session
from minarch_jax.stages import compress, provenance, setup, store, train
from minarch_jax.stages.train import Statistics

FRESH = 100_000  # fresh seeds start here; a multiple of any number of folds
LONGER = 3  # times as many epochs where overfitting is looked for


class Sizes(NamedTuple):
  """How large the arms of a design are.

  Attributes:
    fresh: seeds of what is confirmed, in multiples of the sweep's.
    every: of the architectures by size, from the largest, each so-many-th is
      trained on the harder images.
    overfitting: architectures of each family, at most a third of them: they
      train longer.
  """

  fresh: int
  every: int
  overfitting: int


SIZES = {"arms": Sizes(2, 2, 3), "full": Sizes(4, 1, 4)}


def run(session: Session, out: str, *, alone: bool = True) -> list[Statistics]:
  """Runs the arms of a design; those that are there already at once.

  Args:
    session: that of the sweep, which must be complete in `out`.
    out: the results directory.
    alone: whether the study has no other data set.

  Returns:
    One line of engine statistics per pack.
  """
  if session.config.design not in SIZES:
    return []
  sizes = SIZES[session.config.design]
  members = setup.select(session.config, session.problem)
  base = packs.plan(session, members, list(session.config.seeds))
  statistics = _confirm(session, out, base, sizes)
  if not _is_variant(session.config):
    statistics += _overfit(session, out, base, sizes)
    if alone:
      statistics += _harder(session, out, base, sizes)
  return statistics


def _is_variant(config: Config) -> bool:
  return data.variant_of(config.dataset)[1] != ""


def describe(config: Config) -> str:
  """Says what the arms of a design will train, and how long that may take.

  What is confirmed is chosen when the sweep is there; at most three
  architectures of a family are.
  """
  if config.design not in SIZES:
    return ""
  sizes, parts = SIZES[config.design], config.each()
  longer = harder = fresh = seconds = 0
  for part in parts:
    work, base = train.planned(part)
    families = _by_size(work.problem, base)
    fresh += 3 * len(families)
    if not _is_variant(part):
      chosen = _shallow(families, sizes)
      longer += len(chosen)
      seconds += LONGER * _seconds(part, work, base, chosen)
      if len(parts) == 1:
        chosen = _spread(families, sizes)
        harder += len(chosen)
        seconds += _seconds(part, work, base, chosen)
  return (
    f"beside it, --design={config.design}: {longer} architectures x "
    f"{config.num_seeds} seeds on noisy labels, {LONGER} times as long; "
    f"{harder} x {config.num_seeds} on blurred images; about "
    f"{seconds:.0f} s of training, no compilation; and at most {fresh} x "
    f"{sizes.fresh * config.num_seeds} fresh seeds of what the sweep chooses"
  )


def _seconds(
  config: Config,
  work: Work,
  base: Sequence[Pack],
  chosen: Sequence[Architecture],
) -> float:
  """Predicts the seconds of networks that leave slots of their packs empty."""
  return sum(
    train.seconds_of(
      dataclasses.replace(pack, slots=len(pack.architectures)), work
    )
    for pack in in_packs(base, chosen, list(config.seeds))
  )


def in_packs(
  base: Sequence[Pack], chosen: Sequence[Architecture], seeds: Sequence[int]
) -> list[Pack]:
  """Puts architectures into the packs of a sweep, as many seeds at a time."""
  found = {}
  for pack in base:
    own = tuple(a for a in pack.architectures if a in chosen)
    count = len(pack.seeds)
    for first in range(0, len(seeds) if own else 0, count):
      part = tuple(seeds[first : first + count])
      found[own, part] = dataclasses.replace(
        pack, architectures=own, seeds=part
      )
  return list(found.values())


def _missing(session: Session, out: str, planned: Sequence[Pack]) -> list[Pack]:
  """Leaves out what a results directory holds."""
  done = store.stored(out, setup.recipe_id(session))
  todo = []
  for pack in planned:
    left = tuple(
      a
      for a in pack.architectures
      if any((str(a), seed) not in done for seed in pack.seeds)
    )
    if left:
      todo.append(dataclasses.replace(pack, architectures=left))
  return todo


# --- fresh seeds -------------------------------------------------------------


class Chosen(NamedTuple):
  """What fresh seeds are asked about.

  Attributes:
    sizes: of each family, the architecture at P_min and the one below it.
    redundant: of each family, that of the largest redundancy.
  """

  sizes: list[Architecture]
  redundant: list[Architecture]


def chosen(session: Session, out: str) -> Chosen:
  """Chooses from the networks of the sweep alone."""
  from minarch_jax import analysis  # brings scipy

  whole = records.read(out)
  own = pl.col("run_id") == setup.recipe_id(session)
  found = analysis.Analyses(
    records.Records(*(table.filter(own) for table in whole)), session.config
  )
  regimes, sizes = found["regimes"], []
  for row in found["minimal_parameters"].iter_rows(named=True):
    if row["status"] != "bracketed":
      continue
    below = (
      regimes.filter(family=row["family"], params=int(row["p_below"]))
      .sort("mean_accuracy", descending=True)["architecture"]
      .head(1)
    )
    sizes += [row["architecture"], *below]
  rule = grids.rules_of(session.config)[0]
  stable = regimes.filter(pl.col("label") != "unstable")
  redundant = (
    found["pruning_phases"]
    .filter(schedule="oneshot", **rule._asdict())
    .join(stable, on=["dataset", "architecture"], how="semi")
    .drop_nulls("redundancy")
    .sort("redundancy", "params", descending=[True, False])
    .unique("family", keep="first", maintain_order=True)["architecture"]
  )
  parse = Architecture.parse
  return Chosen(list(map(parse, sizes)), list(map(parse, redundant)))


def _confirm(
  session: Session, out: str, base: Sequence[Pack], sizes: Sizes
) -> list[Statistics]:
  """Trains fresh seeds, and prunes those of the most redundant once."""
  config = session.config
  asked = chosen(session, out)
  count = sizes.fresh * config.num_seeds
  first = FRESH + 2 * max(s.fresh for s in SIZES.values()) * config.first_seed
  seeds = range(first, first + count)
  session = dataclasses.replace(session, arm=records.CONFIRMATION)
  everything = list(dict.fromkeys([*asked.sizes, *asked.redundant]))
  planned = in_packs(base, everything, seeds)
  lines = train.fill(session, out, _missing(session, out, planned))
  (main, *_), (dense, *_) = grids.rules_of(config), grids.precisions_of(config)
  cells = [
    grids.Cell(main, sparsity, dense)
    for sparsity in sorted({0.0, *config.sparsities})
  ]
  design = compress.Design(cells, [dense])
  planned = in_packs(base, asked.redundant, seeds)
  return lines + compress.fill(session, out, planned, design)


# --- other data --------------------------------------------------------------


def _on(session: Session, variant: str, arm: str, **changes) -> Session:
  """Opens a session on a variant of the images, with the same programs."""
  config = session.config.replace(
    dataset=f"{session.config.dataset}:{variant}", **changes
  )
  return dataclasses.replace(
    setup.open_session(config),
    arm=arm,
    most_epochs=session.work.num_epochs,
    programs=session.programs,
    stop=session.stop,
  )


Families = dict[str, list[Architecture]]


def _by_size(problem: Problem, base: Sequence[Pack]) -> Families:
  """The sweep's architectures of each family, from the largest."""
  members = {a: None for pack in base for a in pack.architectures}
  ordered = sorted(members, key=lambda a: (-a.spec(problem).num_params, str(a)))
  families: Families = {}
  for architecture in ordered:
    families.setdefault(architecture.family, []).append(architecture)
  return families


def _spread(families: Families, sizes: Sizes) -> list[Architecture]:
  """A part of the sweep, of all sizes."""
  return [a for group in families.values() for a in group[:: sizes.every]]


def _shallow(families: Families, sizes: Sizes) -> list[Architecture]:
  """A few sizes of each family, of its shallowest architectures, which cost
  least for their size."""
  members = []
  for group in families.values():
    least = min(architecture.depth for architecture in group)
    shallow = [a for a in group if a.depth == least]
    count = min(sizes.overfitting, math.ceil(len(group) / 3), len(shallow))
    members += [shallow[i * len(shallow) // count] for i in range(count)]
  return members


def _harder(
  session: Session, out: str, base: Sequence[Pack], sizes: Sizes
) -> list[Statistics]:
  """Trains a part of the sweep on degraded images, and rounds it."""
  other = _on(session, "blurred", records.HARDER)
  members = _spread(_by_size(session.problem, base), sizes)
  planned = in_packs(base, members, list(session.config.seeds))
  lines = train.fill(other, out, _missing(other, out, planned))
  design = compress.Design(
    grids.cells_of(other.config, prune=False, quantize=True),
    grids.precisions_of(other.config),
  )
  lines += compress.fill(other, out, planned, design)
  provenance.note_dataset(other, out)
  return lines


def _overfit(
  session: Session, out: str, base: Sequence[Pack], sizes: Sizes
) -> list[Statistics]:
  """Trains a few sizes of each family where they can overfit."""
  other = _on(
    session,
    "noisy",
    records.OVERFITTING,
    schedule="constant",
    num_epochs=LONGER * session.config.num_epochs,
  )
  members = _shallow(_by_size(session.problem, base), sizes)
  planned = in_packs(base, members, list(session.config.seeds))
  lines = train.fill(other, out, _missing(other, out, planned))
  provenance.note_dataset(other, out)
  return lines
