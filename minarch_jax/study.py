"""The straight line: sweep, prune and quantize, report.

The only module that knows the order of things. Each stage returns at once for
what the results directory already holds, so a study that was interrupted goes
on where it stopped, and any stage runs alone on what an earlier one left.
"""

from collections.abc import Sequence
import os
from typing import Any

from flax import traverse_util
import jax
import numpy as np
import polars as pl

from minarch_jax import (
  architectures,
  checkpoints,
  compressing,
  compression,
  data,
  grading,
  packs,
  planning,
  population,
  pruning,
  quantization,
  records,
  tabulate,
)
from minarch_jax.architectures import Architecture, Spec
from minarch_jax.config import Config, ConfigError, RETRAINING
from minarch_jax.planning import Pack
from minarch_jax.progress import Progress
from minarch_jax.types import Dataset, Params

Key = tuple[str, int]  # architecture and seed


def check(config: Config) -> data.Description:
  """Refuses what cannot run, before anything heavy starts.

  Raises:
    ConfigError: a data set that is unknown or not prepared, a batch larger
      than the training split, an architecture that does not fit the images, a
      granularity that does not fit an architecture.
  """
  found = data.describe(
    config.dataset,
    config.data_dir or None,
    validation_fraction=config.validation_fraction,
  )
  if config.batch_size > found.num_train:
    raise ConfigError(
      f"--batch_size={config.batch_size} is larger than the training split of "
      f"{config.dataset} ({found.num_train} images)"
    )
  members = select(config, found.input_shape, found.num_classes)
  for architecture in members:
    _check_rules(
      config,
      architecture,
      architecture.spec(found.input_shape, found.num_classes),
    )
  return found


def _check_rules(
  config: Config, architecture: Architecture, spec: Spec
) -> None:
  """Raises ConfigError where groups of a fixed size do not fit a network."""
  for rule in compressing.rules_of(config):
    if ":" not in rule.granularity:
      continue
    shapes = traverse_util.unflatten_dict(
      {
        leaf.path: jax.ShapeDtypeStruct(spec.shape(leaf), np.float32)
        for leaf in spec.leaves
      }
    )
    try:
      pruning.check(shapes, rule.scope, rule.granularity, spec)
    except ValueError as error:
      raise ConfigError(
        f"--granularities={rule.granularity} does not fit {architecture}: "
        f"{error}"
      ) from None


def select(config, input_shape, num_classes) -> list[Architecture]:
  """Lists the architectures of a configuration.

  Raises:
    ConfigError: one does not fit the images.
  """
  try:
    return architectures.select(
      config.architectures,
      config.grid,
      config.families,
      input_shape,
      num_classes,
    )
  except ValueError as error:
    raise ConfigError(f"--architectures: {error}") from None


def load(config: Config) -> Dataset:
  """Loads the data set of a configuration."""
  return data.load(
    config.dataset,
    config.data_dir or None,
    validation_fraction=config.validation_fraction,
    split_seed=config.split_seed,
  )


def open_session(config: Config) -> packs.Session:
  """Starts the devices, loads the data and puts them there."""
  population.use_cores()
  population.use_cache(config.compilation_cache_dir)
  return packs.open_session(config, load(config))


def recipe_id(session: packs.Session) -> str:
  """Identifies a training recipe: configuration and bytes of the data."""
  return records.content_id(
    {"recipe": session.config.recipe(), "data": session.dataset.fingerprint}
  )


# --- training ----------------------------------------------------------------


def _stored(out: str, recipe: str) -> dict[Key, tuple[str, int, int]]:
  """Where each trained network is: (checkpoint, member, seed position)."""
  found = {}
  for id, rows in records.parts(out, "networks"):
    rows = rows.filter(pl.col("run_id") == recipe)
    names = rows["architecture"].unique(maintain_order=True).to_list()
    for i, name in enumerate(names):
      seeds = rows.filter(pl.col("architecture") == name)["seed"].to_list()
      found |= {(name, seed): (id, i, j) for j, seed in enumerate(seeds)}
  return found


def trained(
  session: packs.Session, out: str, networks: pl.DataFrame
) -> list[Architecture]:
  """Lists the recorded architectures of a session's training recipe, by name.

  Raises:
    ConfigError: there are none.
  """
  rows = networks.filter(pl.col("run_id") == recipe_id(session))
  if rows.is_empty():
    raise ConfigError(
      f"{out} holds no network trained with these flags; give the training "
      "flags of its study.json"
    )
  return list(map(Architecture.parse, rows["architecture"].unique().sort()))


def plan(
  session: packs.Session, members: Sequence[Architecture], seeds: Sequence[int]
) -> list[Pack]:
  """Plans the packs of a session's work."""
  return planning.plan(
    members,
    seeds,
    session.work,
    devices=jax.local_device_count(),
    memory_limit=session.config.memory_limit * 2**30,
  )


def plan_missing(
  session: packs.Session, members: Sequence[Architecture], out: str
) -> list[Pack]:
  """Plans the networks that the results directory does not hold yet."""
  done = _stored(out, recipe_id(session))
  missing: dict[tuple[int, ...], list[Architecture]] = {}
  for architecture in members:
    seeds = tuple(
      seed
      for seed in session.config.seeds
      if (str(architecture), seed) not in done
    )
    missing.setdefault(seeds, []).append(architecture)
  return [
    pack
    for seeds, group in missing.items()
    if seeds
    for pack in plan(session, group, seeds)
  ]


def sweep(session: packs.Session, out: str) -> list[dict[str, Any]]:
  """Trains every network that is missing and writes its rows and parameters.

  Returns:
    One line of engine statistics per pack.
  """
  work = session.work
  members = select(session.config, work.input_shape, work.num_classes)
  todo = plan_missing(session, members, out)
  recipe = recipe_id(session)
  costs = {pack: _cost(pack, session) for pack in todo}
  with Progress("train", sum(costs.values())) as progress:

    def run(pack: Pack) -> list[dict[str, Any]]:
      share = costs[pack] / work.num_epochs
      statistics = []
      for trained in packs.train_or_split(
        session, pack, lambda epochs: progress.advance(epochs * share)
      ):
        id = records.content_id([recipe, *_names(trained.pack)])
        checkpoints.save(out, id, trained.params)
        rows = tabulate.curves(session, recipe, trained)
        records.write(out, "curves", id, rows)
        rows = tabulate.networks(session, recipe, trained)
        records.write(out, "networks", id, rows)
        seconds = (trained.compile_seconds, trained.run_seconds)
        statistics.append(_statistics("train", trained.pack, seconds, session))
      return statistics

    return sum(packs.together(session, todo, run), [])


def _names(pack: Pack) -> list:
  return [[str(a) for a in pack.architectures], list(pack.seeds)]


def _cost(pack: Pack, session: packs.Session) -> float:
  run = planning.seconds(pack.parent, pack.slots, session.work)
  return run * len(pack.seeds) / jax.local_device_count()


def _statistics(stage: str, pack: Pack, seconds, session) -> dict[str, Any]:
  return {
    "stage": stage,
    "parent": str(pack.parent),
    "members": len(pack.architectures),
    "seeds": len(pack.seeds),
    "padding": round(planning.padding(pack, session.work), 3),
    "compile_seconds": round(seconds[0], 3),
    "run_seconds": round(seconds[1], 3),
  }


def describe_plan(config: Config) -> str:
  """Describes the packs a sweep would train, as a table of text."""
  population.use_cores()
  found = check(config)
  work = planning.Work(
    found.input_shape,
    found.num_classes,
    found.num_train,
    found.num_validation,
    config.batch_size,
    config.num_epochs,
  )
  devices = jax.local_device_count()
  members = select(config, work.input_shape, work.num_classes)
  todo = planning.plan(
    members,
    list(config.seeds),
    work,
    devices=devices,
    memory_limit=config.memory_limit * 2**30,
  )
  lines = [
    f"{'parent':<28}{'members':>8}{'seeds':>6}{'padding':>8}{'GiB':>7}"
    f"{'seconds':>9}"
  ]
  total = 0.0
  for pack in todo:
    run = planning.seconds(pack.parent, pack.slots, work)
    run *= len(pack.seeds) / devices
    total += run
    held = planning.memory(
      pack.parent, pack.slots, len(pack.seeds), work, devices
    )
    lines.append(
      f"{str(pack.parent):<28}{len(pack.architectures):>8}"
      f"{len(pack.seeds):>6}{planning.padding(pack, work):>8.2f}"
      f"{held / 2**30:>7.2f}{run:>9.1f}"
    )
  programs = len({pack.program for pack in todo})
  compiling = sum(
    planning.COMPILE_SECONDS[parent.family]
    for parent, *_ in {pack.program for pack in todo}
  )
  lines.append(
    f"{len(members)} architectures x {config.num_seeds} seeds on "
    f"{config.dataset} ({work.num_steps:,} steps each): {len(todo)} packs, "
    f"{programs} programs, about {total:.0f} s of training and "
    f"{compiling:.0f} s of compilation on {devices} "
    f"{jax.local_devices()[0].platform} devices"
  )
  return "\n".join(lines)


# --- compression -------------------------------------------------------------


def load_params(
  out: str, recipe: str, members: Sequence[Architecture], seeds: Sequence[int]
) -> list[Params]:
  """Restores trained parameters: a tree per architecture, leading axis S.

  Raises:
    ConfigError: a network is not in the results directory.
  """
  where = _stored(out, recipe)
  opened: dict[str, list[Params]] = {}

  def one(architecture: Architecture, seed: int) -> Params:
    key = (str(architecture), seed)
    if key not in where:
      raise ConfigError(
        f"{architecture} with seed {seed} is not trained in {out} (with these "
        "training flags); run `python -m experiments.sweep` with the same "
        "flags first"
      )
    id, member, position = where[key]
    if id not in opened:
      opened[id] = checkpoints.load(out, id)
    return jax.tree.map(lambda leaf: leaf[position], opened[id][member])

  return [
    jax.tree.map(lambda *s: np.stack(s), *(one(a, seed) for seed in seeds))
    for a in members
  ]


def settings_of(config: Config, index: int = 0) -> list[tuple[int, int]]:
  """Lists (bits, rounding) pairs of one of the roundings.

  32 bits, the control, is one of the first's, whatever the quantizers.
  """
  rounding = compressing.roundings_of(config)[index]
  widths = config.bits
  if rounding.format != "int":
    widths = (quantization.format_of(rounding).bits,)
  asked = rounding.quantizer in config.quantizers
  narrow = [(b, index) for b in widths if asked and b != 32]
  return narrow if index else [(32, 0), *narrow]


def grid_of(config: Config, prune: bool, quantize: bool) -> compression.Cells:
  """Lists the cells of the one-shot grid.

  Bits are crossed with the sparsities of the first rule; the other rules are
  compared at 32 bits, and other roundings and bits of activations on dense
  networks.
  """
  sparsities = sorted({0.0, *config.sparsities}) if prune else [0.0]
  settings = settings_of(config) if quantize else [(32, 0)]
  parts = [compression.make_cells([(0, s) for s in sparsities], settings)]
  others = [
    setting
    for rounding in range(1, len(compressing.roundings_of(config)))
    for setting in settings_of(config, rounding)
  ]
  if quantize and others:
    parts.append(compression.make_cells([(0, 0.0)], others))
  narrow = [b for b in config.activation_bits if b != 32]
  if quantize and narrow:
    parts.append(compression.make_cells([(0, 0.0)], settings, narrow))
  pairs = [
    (rule, sparsity)
    for rule in range(1, len(compressing.rules_of(config)))
    for sparsity in sparsities
  ]
  if prune and pairs:
    parts.append(compression.make_cells(pairs, [(32, 0)]))
  return compression.join(*parts)


def compress(
  session: packs.Session, out: str, *, prune: bool = True, quantize: bool = True
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
  members = select(config, work.input_shape, work.num_classes)
  recipe, rules = recipe_id(session), compressing.rules_of(config)
  _check_retraining(out, config)
  cells = grid_of(config, prune, quantize)
  settings = settings_of(config) if quantize else [(32, 0)]
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
  further = compressing.roundings_of(config)[len(config.quant_granularities) :]
  if further:  # as above: absmax alone has the identity it always had
    kind["roundings"] = further
  largest = {a.family: a for a in retrained}.values()

  def chosen_of(pack: Pack) -> tuple[list[Architecture], list[Architecture]]:
    """Lists what is retrained of a pack, and what of it has controls."""
    chosen = [a for a in pack.architectures if a in retrained]
    return chosen, [a for a in chosen if a in largest]

  todo, costs = [], {}
  for pack in plan(session, members, list(config.seeds)):
    names = [[str(a) for a in part] for part in chosen_of(pack)]
    id = records.content_id([kind, *_names(pack), *names])
    if not records.exists(out, "compression", id):
      todo.append((id, pack))
      chosen, _ = chosen_of(pack)
      costs[id] = _compression_cost(session, pack, chosen, cells)
  todo.sort(key=lambda task: -costs[task[0]])  # the last ones end together
  with Progress("compress", sum(costs.values())) as progress:

    def graded(pack: Pack) -> tuple[list[pl.DataFrame], dict[str, Any]]:
      chosen, compared = chosen_of(pack)
      params = load_params(out, recipe, pack.architectures, pack.seeds)
      variants = grading.variants(pack, chosen, config)
      variants += grading.control_variants(pack, compared, config)
      dense, again, *seconds = compressing.compress(
        session, pack, params, cells, variants, settings
      )
      rows = grading.rows(session, recipe, pack, dense, cells)
      if again is not None:
        rows += grading.retrained_rows(
          session, recipe, pack, again, variants, settings
        )
      if "small_dense" in config.controls:
        rows += grading.small_dense(session, recipe, pack, compared)
      return rows, _statistics("compress", pack, seconds, session)

    def run(task) -> list[dict[str, Any]]:
      id, pack = task
      parts = packs.in_parts(pack, graded)
      rows = [table for tables, _ in parts for table in tables]
      records.write(out, "compression", id, pl.concat(rows, how="diagonal"))
      progress.advance(costs[id])
      return [line for _, line in parts]

    return sum(packs.together(session, todo, run), [])


def _compression_cost(session, pack, chosen, cells) -> float:
  """Predicts seconds: forward passes of the grid, then the retraining."""
  work, config = session.work, session.config
  images = len(session.dataset.validation.y) + len(session.dataset.test.y)
  train = _cost(pack, session)
  forward = train / work.num_epochs * images / work.num_train / 3
  retrained = (
    len(chosen) / pack.slots * len(config.sparsities) * len(config.criteria)
  )
  return forward * len(cells.rule) + train * config.finetune_share * retrained


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
  out: str, session: packs.Session, members: Sequence[Architecture]
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
