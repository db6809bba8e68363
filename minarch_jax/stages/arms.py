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
from minarch_jax.engine.planning import Pack
from minarch_jax.engine.session import Session
from minarch_jax.stages import compress, provenance, setup, store, train
from minarch_jax.stages.working import Statistics

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


class Forecast(NamedTuple):
  """What the arms of a sweep are going to be.

  Attributes:
    longer, harder: architectures trained longer, and on harder images.
    fresh: at most so many are trained on fresh seeds.
    packs: of the two, with how many times as long they train and the design
      that they are compressed by, if any; and of fresh seeds as many as a
      family may choose, from the middle of its sizes.
  """

  longer: list[Architecture]
  harder: list[Architecture]
  fresh: int
  packs: list[tuple[Pack, int, compress.Design | None]]


def forecast(
  config: Config, problem: Problem, base: Sequence[Pack], *, alone: bool
) -> Forecast:
  """Foretells the arms of a design for the planned packs of a sweep.

  What is confirmed is chosen when the sweep is there: of every family the
  architectures at and below the minimal size, and the most redundant one.
  """
  if config.design not in SIZES:
    return Forecast([], [], 0, [])
  sizes, seeds = SIZES[config.design], list(config.seeds)
  families = _by_size(problem, base)
  found = Forecast([], [], 3 * len(families), [])
  if not _is_variant(config):
    found.longer.extend(_shallow(families, sizes))
    if alone:
      found.harder.extend(_spread(families, sizes))
  fresh = range(sizes.fresh * config.num_seeds)
  middle = [
    a for group in families.values() for a in group[len(group) // 2 :][:3]
  ]
  for chosen, own, times, design in (
    (found.longer, seeds, LONGER, None),
    (found.harder, seeds, 1, _rounded(config)),
    (middle, fresh, 1, None),
    (middle[::3], fresh, 0, _pruned(config)),
  ):
    for pack in in_packs(base, chosen, own):
      found.packs.append((pack, times, design))
  return found


def _rounded(config: Config) -> compress.Design:
  """What is done to networks on harder images."""
  return compress.Design(
    grids.cells_of(config, prune=False, quantize=True),
    grids.precisions_of(config),
  )


def _pruned(config: Config) -> compress.Design:
  """What is done to the fresh seeds of the most redundant architectures."""
  (main, *_), (dense, *_) = grids.rules_of(config), grids.precisions_of(config)
  cells = [
    grids.Cell(main, sparsity, dense)
    for sparsity in sorted({0.0, *config.sparsities})
  ]
  return compress.Design(cells, [dense])


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
  planned = in_packs(base, asked.redundant, seeds)
  return lines + compress.fill(session, out, planned, _pruned(config))


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
  lines += compress.fill(other, out, planned, _rounded(other.config))
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
