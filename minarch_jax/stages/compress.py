"""Scores trained networks pruned and rounded, one-shot and retrained."""

from collections.abc import Sequence
import dataclasses
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from minarch_jax import pruning, records
from minarch_jax.architectures import Architecture
from minarch_jax.compression import grid as grids
from minarch_jax.compression import retraining, running
from minarch_jax.compression.grid import Cell, Precision
from minarch_jax.config import Config, RETRAINING
from minarch_jax.engine import costs as costs_lib
from minarch_jax.engine import packs, planning
from minarch_jax.engine import session as sessions
from minarch_jax.engine.planning import Pack
from minarch_jax.engine.session import Session
from minarch_jax.executors import Task
from minarch_jax.executors.tasks import Heard
from minarch_jax.stages import representatives as choices
from minarch_jax.stages import rows as make_rows
from minarch_jax.stages import setup, store, train, watching, working
from minarch_jax.stages.working import Statistics

CELL_SECONDS = 2e-3  # of what is not computing, for each network and cell


class Design(NamedTuple):
  """What is done to the trained networks.

  Attributes:
    cells: the one-shot grid, of every architecture.
    precisions: what is scored after retraining.
    retrained: the architectures that are retrained.
    compared: those of them that have controls, one per family.
  """

  cells: list[Cell]
  precisions: list[Precision]
  retrained: Sequence[Architecture] = ()
  compared: Sequence[Architecture] = ()

  def of(self, pack: Pack) -> tuple[list[Architecture], list[Architecture]]:
    """Lists what is retrained of a pack, and what of it has controls."""
    chosen = [a for a in pack.architectures if a in self.retrained]
    return chosen, [a for a in chosen if a in self.compared]


def compress(
  session: Session, out: str, *, prune: bool = True, quantize: bool = True
) -> list[Statistics]:
  """Scores the trained networks pruned and rounded, one-shot and retrained.

  Args:
    session: the data and programs.
    out: the results directory with the trained networks.
    prune, quantize: which axes of the grid to walk.

  Returns:
    One line of engine statistics per pack.

  Raises:
    ConfigError: networks are missing.
  """
  config = session.config
  members = setup.select(config, session.problem)
  design = _design(session, out, members, prune, quantize)
  planned = packs.plan(session, members, list(config.seeds))
  return fill(session, out, planned, design)


def fill(
  session: Session, out: str, planned: Sequence[Pack], design: Design
) -> list[Statistics]:
  """Compresses packs by a design and writes their rows.

  Returns:
    One line of engine statistics per pack that was not there.
  """
  kind = _kind(session, design)
  facts, tasks = setup.Facts.of(session), []
  for pack in planned:
    names = [[str(a) for a in part] for part in design.of(pack)]
    id = records.content_id([kind, *train.pack_id(pack), *names])
    seconds = facts.wall(seconds_of(facts, pack, design))
    task = Task(_compress, out, id, ("compression",), (pack,), design, seconds)
    if not task.done:
      tasks.append(task)
  tasks.sort(key=lambda task: -task.seconds)
  return working.run(session, "compress", tasks)


def _compress(session: Session, task: Task, heard: Heard) -> list[Statistics]:
  """Compresses a pack by a design and writes its rows."""
  out, (pack,), design = task.out, task.packs, task.how
  parts = sessions.in_parts(
    pack, lambda part: _compressed(session, out, part, design)
  )
  rows = pl.concat(
    [table for tables, _ in parts for table in tables], how="diagonal"
  )
  for table in ("hits", "compression"):  # the last says that it is done
    own = rows.select(*records.SCHEMAS[table])
    records.write(out, table, task.id, own)
  watching.follow(out, session.config.log)
  heard(1.0)
  return [line for _, line in parts]


def _design(
  session: Session,
  out: str,
  members: Sequence[Architecture],
  prune: bool,
  quantize: bool,
) -> Design:
  retrained = []
  if prune and session.config.finetune_share:
    retrained = choices.representatives(session, out, members)
  return design_of(session.config, retrained, prune, quantize)


def design_of(
  config: Config,
  retrained: Sequence[Architecture],
  prune: bool = True,
  quantize: bool = True,
) -> Design:
  """Designs the compression of a sweep; the largest retrained have controls."""
  precisions = grids.precisions_of(config)
  largest = {a.family: a for a in retrained}
  return Design(
    grids.cells_of(config, prune, quantize),
    precisions if quantize else precisions[:1],
    retrained,
    list(largest.values()),
  )


def _kind(session: Session, design: Design) -> dict[str, Any]:
  """What the rows of any pack depend on, besides the pack."""
  config = session.config
  return {
    "recipe": setup.recipe_id(session),
    "cells": design.cells,
    "precisions": design.precisions,
    "schedules": config.schedules,
    "finetune": {name: getattr(config, name) for name in RETRAINING},
    "controls": [config.controls, config.compared_sparsities],
  }


def _compressed(
  session: Session, out: str, pack: Pack, design: Design
) -> tuple[list[pl.DataFrame], Statistics]:
  """Compresses one pack: its rows, and a line of statistics."""
  config, recipe = session.config, setup.recipe_id(session)
  chosen, compared = design.of(pack)
  params = store.load_params(out, recipe, pack.architectures, pack.seeds)
  retrainings = grids.retrainings_of(config, chosen)
  retrainings += grids.controls_of(config, compared)
  found = running.compress(
    *(session, pack, params, design.cells, retrainings, design.precisions),
  )
  rows = make_rows.oneshot(session, recipe, pack, found, design.cells)
  rows += make_rows.retrained(
    session, recipe, pack, found, retrainings, design.precisions
  )
  if "small_dense" in config.controls:
    rows += _small_dense(session, recipe, pack, compared)
  seconds = (found.compile_seconds, found.run_seconds)
  forecast = seconds_of(setup.Facts.of(session), pack, design)
  return rows, train.statistics_of("compress", session, pack, seconds, forecast)


def _small_dense(
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
  main, *_ = grids.rules_of(session.config)
  dense, *_ = grids.precisions_of(session.config)
  tasks = [
    (architecture, Cell(main, sparsity, dense))
    for architecture in compared
    for sparsity in session.config.compared_sparsities
  ]
  more = retraining.retraining_rates(session)
  steps = session.work.num_steps + more.size
  rows = []
  for first in range(0, len(tasks), pack.slots):
    part = tasks[first : first + pack.slots]
    small = tuple(_shrunk(session, a, cell.sparsity) for a, cell in part)
    trained = packs.train(
      session, dataclasses.replace(pack, architectures=small), more=more
    )
    rows += [
      make_rows.small_dense(session, recipe, trained, i, task, steps)
      for i, task in enumerate(part)
    ]
  return rows


def _shrunk(
  session: Session, architecture: Architecture, sparsity: float
) -> Architecture:
  """The dense network with the parameters that pruning leaves."""
  spec = architecture.spec(session.problem)
  sizes = [np.prod(spec.shape(leaf)) for leaf in spec.leaves if leaf.is_weight]
  left = spec.num_params - round(sparsity * int(sum(sizes)))
  return pruning.small_dense(architecture, left, *session.problem)


def seconds_of(facts: setup.Facts, pack: Pack, design: Design) -> float:
  """Predicts for how long compressing a pack by a design is in progress."""
  config, work, machine = facts.config, facts.work, facts.machine
  alone = dataclasses.replace(pack, architectures=pack.architectures[:1])
  training = planning.core_seconds(alone, work, machine)
  images = (work.num_eval + facts.num_test) / 3  # they go forward only
  forward = training / max(1, work.num_steps) / work.images * images
  chosen, compared = design.of(pack)
  retrained = len(grids.retrainings_of(config, chosen))
  controls = [each.control for each in grids.controls_of(config, compared)]
  anew = sum(bool(grids.CONTROLS[str(control)]) for control in controls)
  if "small_dense" in config.controls:
    small = len(compared) * len(config.compared_sparsities)
    retrained, anew = retrained + small, anew + small
  retrained += len(controls)
  cells = len(pack.architectures) * len(design.cells)
  cells += retrained * len(design.precisions)
  family = pack.parent.family
  factor = machine.factor(costs_lib.COMPRESSING, family)
  factor /= machine.factor(costs_lib.RUNNING, family)
  trainings = anew + retrained * config.finetune_share
  host = cells * CELL_SECONDS * len(pack.seeds)
  return facts.shared(factor * (trainings * training + cells * forward + host))
