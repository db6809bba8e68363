"""Trains the networks that a results directory lacks."""

from collections.abc import Sequence
from typing import Any

import jax

from minarch_jax import (
  records,
)
from minarch_jax.architectures import Architecture
from minarch_jax.config import Config
from minarch_jax.engine import packs, planning, population
from minarch_jax.engine import session as sessions
from minarch_jax.engine.planning import Pack, Work
from minarch_jax.engine.session import Session
from minarch_jax.stages import checkpoints, setup, store
from minarch_jax.stages import rows as make_rows
from minarch_jax.stages.progress import Progress


def plan(
  session: Session, members: Sequence[Architecture], seeds: Sequence[int]
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
  session: Session, members: Sequence[Architecture], out: str
) -> list[Pack]:
  """Plans the networks that the results directory does not hold yet."""
  done = store.stored(out, setup.recipe_id(session))
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


def sweep(session: Session, out: str) -> list[dict[str, Any]]:
  """Trains every network that is missing and writes its rows and parameters.

  Returns:
    One line of engine statistics per pack.
  """
  work = session.work
  members = setup.select(session.config, work.input_shape, work.num_classes)
  todo = plan_missing(session, members, out)
  recipe = setup.recipe_id(session)
  costs = {pack: predicted_seconds(pack, session) for pack in todo}
  with Progress("train", sum(costs.values())) as progress:

    def run(pack: Pack) -> list[dict[str, Any]]:
      share = costs[pack] / work.num_epochs
      statistics = []
      for trained in packs.train_or_split(
        session, pack, lambda epochs: progress.advance(epochs * share)
      ):
        id = records.content_id([recipe, *described(trained.pack)])
        checkpoints.save(out, id, trained.params)
        rows = make_rows.curves(session, recipe, trained)
        records.write(out, "curves", id, rows)
        rows = make_rows.networks(session, recipe, trained)
        records.write(out, "networks", id, rows)
        seconds = (trained.compile_seconds, trained.run_seconds)
        statistics.append(
          statistics_of("train", trained.pack, seconds, session)
        )
      return statistics

    return sum(sessions.together(session, todo, run), [])


def described(pack: Pack) -> list:
  return [[str(a) for a in pack.architectures], list(pack.seeds)]


def predicted_seconds(pack: Pack, session: Session) -> float:
  run = planning.seconds(pack.parent, pack.slots, session.work)
  return run * len(pack.seeds) / jax.local_device_count()


def statistics_of(stage: str, pack: Pack, seconds, session) -> dict[str, Any]:
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
  found = setup.check(config)
  work = Work(
    found.input_shape,
    found.num_classes,
    found.num_train,
    found.num_validation,
    config.batch_size,
    config.num_epochs,
  )
  devices = jax.local_device_count()
  members = setup.select(config, work.input_shape, work.num_classes)
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
