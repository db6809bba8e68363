"""Trains the networks that a results directory lacks."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from minarch_jax import records
from minarch_jax.architectures import Architecture, ladder, Problem
from minarch_jax.config import Config
from minarch_jax.engine import memory, packs, planning, population
from minarch_jax.engine import session as sessions
from minarch_jax.engine.packs import Trained
from minarch_jax.engine.planning import Pack, Work
from minarch_jax.engine.session import Session
from minarch_jax.stages import checkpoints, setup, store
from minarch_jax.stages import rows as make_rows
from minarch_jax.stages.progress import Progress

Statistics = dict[str, Any]  # a line of study.json about one pack


def sweep(session: Session, out: str) -> list[Statistics]:
  """Trains every network that is missing and writes its rows and parameters.

  Returns:
    One line of engine statistics per pack.
  """
  members = setup.select(session.config, session.problem)
  return fill(session, out, plan_missing(session, members, out))


def fill(session: Session, out: str, todo: Sequence[Pack]) -> list[Statistics]:
  """Trains packs and writes their rows and parameters.

  Returns:
    One line of engine statistics per pack.
  """
  costs = {pack: predicted_seconds(session, pack) for pack in todo}
  with Progress(label("train", session), sum(costs.values())) as progress:

    def run(pack: Pack) -> list[Statistics]:
      share = costs[pack] / session.work.num_epochs
      return [
        _keep(session, out, trained)
        for trained in packs.train_or_split(
          session, pack, lambda epochs: progress.advance(epochs * share)
        )
      ]

    return sum(sessions.together(session, todo, run), [])


def label(stage: str, session: Session) -> str:
  """Names a stage of an arm, for whoever watches."""
  return stage if session.arm == records.MAIN else f"{stage} {session.arm}"


def _keep(session: Session, out: str, trained: Trained) -> Statistics:
  """Writes a trained pack; its part of `networks` last, which says done."""
  recipe = setup.recipe_id(session)
  id = records.content_id([recipe, *pack_id(trained.pack)])
  checkpoints.save(out, id, trained.params)
  rows = make_rows.curves(session, recipe, trained)
  records.write(out, "curves", id, rows)
  records.write(out, "hits", id, make_rows.hits(session, recipe, trained))
  rows = make_rows.networks(session, recipe, trained)
  records.write(out, "networks", id, rows)
  seconds = (trained.compile_seconds, trained.run_seconds)
  return statistics_of("train", session, trained.pack, seconds)


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
    for pack in packs.plan(session, group, seeds)
  ]


def pack_id(pack: Pack) -> list:
  """What of a pack its rows depend on: architectures and seeds."""
  return [[str(a) for a in pack.architectures], list(pack.seeds)]


def predicted_seconds(session: Session, pack: Pack) -> float:
  """Predicts the seconds of training a pack on this machine."""
  return seconds_of(pack, session.work)


def seconds_of(pack: Pack, work: Work) -> float:
  """As `predicted_seconds`, from facts alone."""
  run = planning.seconds(pack.parent, pack.slots, work)
  return run * len(pack.seeds) / jax.local_device_count()


def statistics_of(
  stage: str, session: Session, pack: Pack, seconds: tuple[float, float]
) -> Statistics:
  """Describes a pack that was run; seconds are (compiling, running)."""
  return {
    "stage": stage,
    "dataset": session.dataset.name,
    "parent": str(pack.parent),
    "members": len(pack.architectures),
    "seeds": len(pack.seeds),
    "padding": round(planning.padding(pack, session.work), 3),
    "compile_seconds": round(seconds[0], 3),
    "run_seconds": round(seconds[1], 3),
  }


# --- the plan, without training ----------------------------------------------


class Plan(NamedTuple):
  """What a sweep would train on one data set.

  Attributes:
    lines: a line of text per pack.
    dataset: its name.
    num_architectures, num_seeds, num_packs: how many.
    num_steps: of one training.
    programs: what tells its programs from each other, and from those of plans
      on images of other shapes; with the seconds of compiling each.
    seconds: of training.
    gaps: cells of the ladder that no architecture fills.
  """

  lines: list[str]
  dataset: str
  num_architectures: int
  num_seeds: int
  num_steps: int
  num_packs: int
  programs: dict[Any, float]
  seconds: float
  gaps: list[str]


def describe_plan(config: Config) -> str:
  """Describes the packs a sweep would train, as a table of text.

  Several data sets have a table each, and a line about them all.

  Raises:
    ConfigError: as `setup.check`.
  """
  population.use_cores()
  config.on_each(setup.check)
  plans = [_plan(part) for part in config.each()]
  texts = ["\n".join([*plan.lines, _total(plan)]) for plan in plans]
  if len(plans) > 1:
    texts.append(_sum(plans))
  return "\n\n".join(texts)


def planned(config: Config) -> tuple[Work, list[Pack]]:
  """Plans a sweep of one data set from facts alone: no image is read."""
  found = setup.check(config)
  work = Work(
    Problem.of(found),
    found.num_train,
    found.num_validation,
    config.batch_size,
    config.num_epochs,
  )
  return work, planning.plan(
    setup.select(config, work.problem),
    list(config.seeds),
    work,
    devices=jax.local_device_count(),
    memory_limit=memory.limit(config),
  )


def _plan(config: Config) -> Plan:
  work, todo = planned(config)
  devices = jax.local_device_count()
  head = f"{'parent':<28}{'members':>8}{'seeds':>6}{'padding':>8}{'GiB':>7}"
  lines = [f"{head}{'seconds':>9}"]
  lines += [_line(pack, work, devices) for pack in todo]
  return Plan(
    lines,
    config.dataset,
    len({a for pack in todo for a in pack.architectures}),
    config.num_seeds,
    work.num_steps,
    len(todo),
    {
      (work, pack.program): pack.parent.traits.costs.compile_seconds
      for pack in todo
    },
    sum(seconds_of(pack, work) for pack in todo),
    _gaps(config, work.problem, todo),
  )


def _gaps(config: Config, problem: Problem, todo: Sequence[Pack]) -> list[str]:
  if config.architectures or config.grid != "ladder":
    return []
  found = sorted({a for pack in todo for a in pack.architectures}, key=str)
  return ladder.gaps(problem, found)


def _total(plan: Plan) -> str:
  text = (
    f"{plan.num_architectures} architectures x {plan.num_seeds} seeds on "
    f"{plan.dataset} ({plan.num_steps:,} steps each): {plan.num_packs} packs, "
    f"{_cost(plan.programs, plan.seconds)}"
  )
  if plan.gaps:
    text += f"\nno whole widths make: {'; '.join(plan.gaps)}"
  return text


def _sum(plans: Sequence[Plan]) -> str:
  programs: dict[Any, float] = {}
  for plan in plans:
    programs |= plan.programs  # data sets of equal shapes share them
  networks = sum(plan.num_architectures * plan.num_seeds for plan in plans)
  seconds = sum(plan.seconds for plan in plans)
  return (
    f"together: {networks:,} networks on {len(plans)} data sets: "
    f"{sum(plan.num_packs for plan in plans)} packs, "
    f"{_cost(programs, seconds)}"
  )


def _cost(programs: Mapping[Any, float], seconds: float) -> str:
  return (
    f"{len(programs)} programs, about {seconds:.0f} s of training and "
    f"{sum(programs.values()):.0f} s of compilation on "
    f"{jax.local_device_count()} {jax.local_devices()[0].platform} devices"
  )


def _line(pack: Pack, work: Work, devices: int) -> str:
  held = planning.memory(
    pack.parent, pack.slots, len(pack.seeds), work, devices
  )
  return (
    f"{str(pack.parent):<28}{len(pack.architectures):>8}"
    f"{len(pack.seeds):>6}{planning.padding(pack, work):>8.2f}"
    f"{held / 2**30:>7.2f}{seconds_of(pack, work):>9.1f}"
  )
