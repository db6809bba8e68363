"""Scores trained networks pruned and rounded, one-shot and retrained."""

from collections.abc import Sequence
import dataclasses
import os
from typing import Any

import numpy as np
import polars as pl

from minarch_jax import (
  records,
)
from minarch_jax.architectures import Architecture
from minarch_jax.compression import grid as grids
from minarch_jax.compression import running
from minarch_jax.config import Config, ConfigError, RETRAINING
from minarch_jax.engine import packs
from minarch_jax.engine import session as sessions
from minarch_jax.engine.planning import Pack
from minarch_jax.engine.session import Session
from minarch_jax.stages import rows as make_rows
from minarch_jax.stages import setup, store, train
from minarch_jax.stages.progress import Progress


def compress(
  session: Session, out: str, *, prune: bool = True, quantize: bool = True
) -> list[dict[str, Any]]:
  """Scores the trained networks pruned and rounded, one-shot and retrained.

  Args:
    session: the data and programs.
    out: the results directory with the trained networks.
    prune, quantize: which axes of the grid to walk.

  Raises:
    ConfigError: networks are missing, or the directory holds retraining with
      other flags.
  """
  config, work = session.config, session.work
  members = setup.select(config, work.input_shape, work.num_classes)
  recipe, rules = setup.recipe_id(session), grids.rules_of(config)
  _check_retraining(out, config)
  cells = grids.grid_of(config, prune, quantize)
  settings = grids.settings_of(config) if quantize else [(32, 0)]
  retrained = (
    representatives(out, session, members)
    if prune and config.finetune_share
    else []
  )
  columns = [column.tolist() for column in cells]
  if set(cells.activation_bits.tolist()) == {32}:
    columns.pop()  # what rounds weights alone has the identity it always had
  kind = {
    "recipe": recipe,
    "rules": rules,
    "cells": columns,
    "shares": config.quant_granularities,
    "finetune": {name: getattr(config, name) for name in RETRAINING},
    "controls": [config.controls, config.compared_sparsities],
  }
  further = grids.roundings_of(config)[len(config.quant_granularities) :]
  if further:  # as above: absmax alone has the identity it always had
    kind["roundings"] = further
  largest = {a.family: a for a in retrained}.values()

  def chosen_of(pack: Pack) -> tuple[list[Architecture], list[Architecture]]:
    """Lists what is retrained of a pack, and what of it has controls."""
    chosen = [a for a in pack.architectures if a in retrained]
    return chosen, [a for a in chosen if a in largest]

  todo, costs = [], {}
  for pack in train.plan(session, members, list(config.seeds)):
    names = [[str(a) for a in part] for part in chosen_of(pack)]
    id = records.content_id([kind, *train.described(pack), *names])
    if not records.exists(out, "compression", id):
      todo.append((id, pack))
      chosen, _ = chosen_of(pack)
      costs[id] = _compression_cost(session, pack, chosen, cells)
  todo.sort(key=lambda task: -costs[task[0]])  # the last ones end together
  with Progress("compress", sum(costs.values())) as progress:

    def graded(pack: Pack) -> tuple[list[pl.DataFrame], dict[str, Any]]:
      chosen, compared = chosen_of(pack)
      params = store.load_params(out, recipe, pack.architectures, pack.seeds)
      variants = grids.variants(pack, chosen, config)
      variants += grids.control_variants(pack, compared, config)
      dense, again, *seconds = running.compress(
        session, pack, params, cells, variants, settings
      )
      rows = make_rows.oneshot_rows(session, recipe, pack, dense, cells)
      if again is not None:
        rows += make_rows.retrained_rows(
          session, recipe, pack, again, variants, settings
        )
      if "small_dense" in config.controls:
        rows += small_dense(session, recipe, pack, compared)
      return rows, train.statistics_of("compress", pack, seconds, session)

    def run(task) -> list[dict[str, Any]]:
      id, pack = task
      parts = sessions.in_parts(pack, graded)
      rows = [table for tables, _ in parts for table in tables]
      records.write(out, "compression", id, pl.concat(rows, how="diagonal"))
      progress.advance(costs[id])
      return [line for _, line in parts]

    return sum(sessions.together(session, todo, run), [])


def _compression_cost(session, pack, chosen, cells) -> float:
  """Predicts seconds: forward passes of the grid, then the retraining."""
  work, config = session.work, session.config
  images = len(session.dataset.validation.y) + len(session.dataset.test.y)
  seconds = train.predicted_seconds(pack, session)
  forward = seconds / work.num_epochs * images / work.num_train / 3
  retrained = (
    len(chosen) / pack.slots * len(config.sparsities) * len(config.criteria)
  )
  return forward * len(cells.rule) + seconds * config.finetune_share * retrained


def _check_retraining(out: str, config: Config) -> None:
  """Keeps two kinds of retraining out of one directory."""
  before = records.read_json(os.path.join(out, "study.json")).get("config", {})
  if not os.path.isdir(os.path.join(out, "records", "compression")):
    return
  for name in RETRAINING:
    value = getattr(config, name)
    if name in before and before[name] != value:
      raise ConfigError(
        f"--{name}={value}, but {out} holds retraining with "
        f"{name}={before[name]}; use that value or another --out"
      )


def representatives(
  out: str, session: Session, members: Sequence[Architecture]
) -> list[Architecture]:
  """Chooses the architectures that are retrained, on validation alone.

  Per family, along the parameter axis: of every depth the smallest at or above
  the minimal parameter count, and the one nearest to five times as large.
  """
  if session.config.finetune == "all":
    return list(members)
  from minarch_jax import analysis  # half a second of scipy

  shape = (session.work.input_shape, session.work.num_classes)
  found = analysis.minimal_parameters(records.read(out), session.config)
  smallest = {
    row["family"]: row["p_min"] for row in found.iter_rows(named=True)
  }
  chosen = []
  for family in dict.fromkeys(a.family for a in members):
    group = [a for a in members if a.family == family]
    group.sort(key=lambda a: a.num_params(*shape))
    limit = smallest.get(family) or group[len(group) // 2].num_params(*shape)
    above = [a for a in group if a.num_params(*shape) >= limit]
    for depth in sorted({a.depth for a in above}):
      chosen += [a for a in above if a.depth == depth][:1]
    distance = [abs(np.log(a.num_params(*shape) / limit / 5)) for a in above]
    chosen += [above[int(np.argmin(distance))]] if above else []
  return list(dict.fromkeys(chosen))


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
  more = running.retraining_rates(session)
  steps = session.work.num_steps + more.size
  found = []
  for first in range(0, len(tasks), pack.slots):
    part = tasks[first : first + pack.slots]
    small = tuple(make_rows.shrunk(session, *task) for task in part)
    trained = packs.train(
      session, dataclasses.replace(pack, architectures=small), more=more
    )
    found += [
      make_rows.small_rows(session, recipe, trained, i, *task, steps)
      for i, task in enumerate(part)
    ]
  return found
