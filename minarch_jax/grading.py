"""What is retrained of a compressed pack, and the rows its results make."""

from collections.abc import Sequence
import dataclasses
import math

import numpy as np
import polars as pl

from minarch_jax import (
  compressing,
  compression,
  names,
  packs,
  pruning,
  tabulate,
)
from minarch_jax.architectures import Architecture
from minarch_jax.compressing import Variant
from minarch_jax.compression import Cells, Outcome
from minarch_jax.config import Config
from minarch_jax.packs import Session
from minarch_jax.planning import Pack

Settings = Sequence[tuple[int, int]]  # (bits, rounding)


def variants(
  pack: Pack, chosen: Sequence[Architecture], config: Config
) -> list[Variant]:
  """Lists what is retrained of a pack: every criterion in the first scope."""
  rules = compressing.rules_of(config)
  return [
    Variant(pack.architectures.index(architecture), rule, sparsity)
    for rule, each in enumerate(rules)
    if each.scope == config.scopes[0]
    for architecture in chosen
    for sparsity in sorted({0.0, *config.sparsities})
  ]


def control_variants(
  pack: Pack, compared: Sequence[Architecture], config: Config
) -> list[Variant]:
  """Lists the controls that keep the mask or the weights of the first rule."""
  return [
    Variant(pack.architectures.index(a), 0, sparsity, control)
    for control in config.controls
    if control in compressing.CONTROLS
    for a in compared
    for sparsity in config.compared_sparsities
  ]


def rows(
  session: Session, recipe: str, pack: Pack, outcome: Outcome, cells: Cells
) -> list[pl.DataFrame]:
  """Makes the rows of the one-shot grid."""
  return [
    tabulate.compressed(
      session,
      recipe,
      architecture,
      pack.seeds,
      compressing.rules_of(session.config),
      cells,
      _member(session, pack, outcome, i, architecture),
      schedule="oneshot",
      steps=session.work.num_steps,
    )
    for i, architecture in enumerate(pack.architectures)
  ]


def retrained_rows(
  session: Session,
  recipe: str,
  pack: Pack,
  outcome: Outcome,
  variants: Sequence[Variant],
  settings: Settings,
) -> list[pl.DataFrame]:
  """Makes the rows of retraining."""
  work, config = session.work, session.config
  more = math.prod(compressing.retraining_steps(session))
  found = []
  for i, variant in enumerate(variants):
    architecture = pack.architectures[variant.member]
    cells = compression.make_cells([(variant.rule, variant.sparsity)], settings)
    found.append(
      tabulate.compressed(
        session,
        recipe,
        architecture,
        pack.seeds,
        compressing.rules_of(config),
        cells,
        _member(session, pack, outcome, i, architecture),
        schedule="finetune",
        steps=work.num_steps + more,
        control=variant.control,
      )
    )
  return found


def small_dense(
  session: Session,
  recipe: str,
  pack: Pack,
  compared: Sequence[Architecture],
) -> list[pl.DataFrame]:
  """Trains dense networks of as many parameters for as many steps.

  They are narrower, so they take the slots of the pack that holds what they are
  compared with, and its program. Their rows stand under the architecture they
  are a control of.
  """
  tasks = [
    (a, sparsity)
    for a in compared
    for sparsity in session.config.compared_sparsities
  ]
  more = compressing.retraining_rates(session)
  steps = session.work.num_steps + more.size
  found = []
  for first in range(0, len(tasks), pack.slots):
    part = tasks[first : first + pack.slots]
    small = tuple(_shrunk(session, *task) for task in part)
    trained = packs.train(
      session, dataclasses.replace(pack, architectures=small), more=more
    )
    found += [
      _small_rows(session, recipe, trained, i, *task, steps)
      for i, task in enumerate(part)
    ]
  return found


def _shrunk(session, architecture, sparsity) -> Architecture:
  """The dense network with the parameters that pruning leaves."""
  shape = (session.work.input_shape, session.work.num_classes)
  spec = architecture.spec(*shape)
  prunable = sum(
    math.prod(spec.shape(leaf))
    for leaf in spec.leaves
    if names.is_weight(leaf.path)
  )
  left = spec.num_params - round(sparsity * prunable)
  return pruning.small_dense(architecture, left, *shape)


def _small_rows(session, recipe, trained, i, architecture, sparsity, steps):
  """The rows of one small network, under the name of the large one."""
  shape = (session.work.input_shape, session.work.num_classes)
  small, seeds = trained.pack.architectures[i], trained.pack.seeds
  spec, size = architecture.spec(*shape), small.spec(*shape)
  counts = [math.prod(size.shape(leaf)) for leaf in size.leaves]
  outcome = Outcome(
    trained.scores.validation.correct[:, i : i + 1],
    trained.scores.test.correct[:, i : i + 1],
    np.tile(counts, (len(seeds), 1, 1)),
  )
  cells = compression.make_cells([(0, sparsity)], [(32, 0)])
  return tabulate.compressed(
    session,
    recipe,
    small,
    seeds,
    compressing.rules_of(session.config),
    cells,
    outcome,
    schedule="finetune",
    steps=steps,
    control="small_dense",
  ).with_columns(
    architecture=pl.lit(str(architecture)),
    depth=pl.lit(architecture.depth),
    params=pl.lit(spec.num_params),
    achieved_sparsity=pl.lit(1 - size.num_params / spec.num_params),
  )


def _member(session, pack, outcome, index, architecture) -> Outcome:
  shape = (session.work.input_shape, session.work.num_classes)
  return compressing.of_member(
    outcome, index, architecture.spec(*shape), pack.parent.spec(*shape)
  )
