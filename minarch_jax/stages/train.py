"""Trains the networks that a results directory lacks."""

from collections.abc import Mapping, Sequence
import functools
import itertools

from minarch_jax import records
from minarch_jax.architectures import Architecture
from minarch_jax.engine import costs as costs_lib
from minarch_jax.engine import packs, planning
from minarch_jax.engine import session as sessions
from minarch_jax.engine.packs import Trained
from minarch_jax.engine.planning import Pack
from minarch_jax.engine.session import Session
from minarch_jax.executors import Task
from minarch_jax.executors.tasks import Heard
from minarch_jax.stages import (
  checkpoints,
  setup,
  store,
  unfinished,
  watching,
  working,
)
from minarch_jax.stages import rows as make_rows
from minarch_jax.stages.working import Statistics

PACK_SECONDS = 0.3  # of initial values, placing and writing


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
  unfinished.clear(out)
  facts = setup.Facts.of(session)
  costs = {pack: seconds_of(facts, pack) for pack in todo}
  shares = shares_of(facts, costs)
  tasks = [
    Task(
      _train,
      out,
      _id(session, pack),
      ("networks",),
      (pack,),
      None,
      shares[pack],
    )
    for pack in todo
  ]
  lines = working.run(session, "train", tasks)
  unfinished.clear(out)
  return lines


def _train(session: Session, task: Task, heard: Heard) -> list[Statistics]:
  """Trains a pack and writes its rows and parameters."""
  out, (pack,) = task.out, task.packs
  facts, id_of = setup.Facts.of(session), functools.partial(_id, session)

  def finished(epochs: int) -> None:
    heard(epochs / session.work.num_epochs)

  with unfinished.keeping(session, out, id_of) as keeper_of:

    def train(part: Pack) -> list[Statistics]:
      if records.exists(out, "networks", id_of(part)):  # of a pack that was cut
        return []
      trained = packs.train(session, part, finished, keeper_of)
      return [_keep(session, out, trained, seconds_of(facts, part))]

    return sum(sessions.in_parts(pack, train), [])


def shares_of(
  facts: setup.Facts, costs: Mapping[Pack, float]
) -> dict[Pack, float]:
  """Predicts the share of each pack in the time that all take: seconds.

  Args:
    costs: for how long each is in progress, but for compiling; that falls to
      the first that runs a program.
  """
  found, programs = {}, set()
  for pack, seconds in costs.items():
    if pack.program not in programs:
      seconds += costs_lib.compile_seconds(pack.parent, facts.machine)
    programs.add(pack.program)
    found[pack] = facts.wall(seconds)
  return found


def seconds_of(facts: setup.Facts, pack: Pack) -> float:
  """Predicts for how long the training of a pack is in progress."""
  own = facts.machine.factor(costs_lib.RUNNING, pack.parent.family)
  running = planning.core_seconds(pack, facts.work, facts.machine)
  return PACK_SECONDS * own + facts.shared(running)


def _keep(
  session: Session, out: str, trained: Trained, forecast: float
) -> Statistics:
  """Writes a trained pack; its part of `networks` last, which says done."""
  recipe, id = setup.recipe_id(session), _id(session, trained.pack)
  checkpoints.save(out, id, trained.params)
  rows = make_rows.curves(session, recipe, trained)
  records.write(out, "curves", id, rows)
  records.write(out, "hits", id, make_rows.hits(session, recipe, trained))
  rows = make_rows.networks(session, recipe, trained)
  records.write(out, "networks", id, rows)
  watching.follow(out, session.config.log)
  seconds = (trained.compile_seconds, trained.run_seconds)
  return statistics_of("train", session, trained.pack, seconds, forecast)


def plan_missing(
  session: Session, members: Sequence[Architecture], out: str
) -> list[Pack]:
  """Plans the networks that the results directory does not hold yet.

  The packs of the whole plan of which nothing is there are kept as they are, so
  that a study that goes on trains those that it was in the middle of.
  """
  done = store.stored(out, setup.recipe_id(session))
  left = {(a, seed) for a in members for seed in session.config.seeds}
  left = {(a, seed) for a, seed in left if (str(a), seed) not in done}
  todo = []
  if left:
    for pack in packs.plan(session, members, list(session.config.seeds)):
      own = set(itertools.product(pack.architectures, pack.seeds))
      if own <= left:
        todo.append(pack)
        left -= own
  rest: dict[tuple[int, ...], list[Architecture]] = {}
  for architecture in members:
    seeds = [s for s in session.config.seeds if (architecture, s) in left]
    rest.setdefault(tuple(seeds), []).append(architecture)
  for seeds, group in rest.items():
    if seeds:
      todo += packs.plan(session, group, seeds)
  return todo


def _id(session: Session, pack: Pack) -> str:
  """Names the part of a pack."""
  return records.content_id([setup.recipe_id(session), *pack_id(pack)])


def pack_id(pack: Pack) -> list:
  """What of a pack its rows depend on: architectures and seeds."""
  return [[str(a) for a in pack.architectures], list(pack.seeds)]


def statistics_of(
  stage: str,
  session: Session,
  pack: Pack,
  seconds: tuple[float, float],
  forecast: float,
) -> Statistics:
  """Describes a pack that was run.

  Args:
    seconds: of compiling and of running.
    forecast: seconds of running, as foretold.
  """
  return {
    "stage": stage,
    "dataset": session.dataset.name,
    "parent": str(pack.parent),
    "members": len(pack.architectures),
    "seeds": len(pack.seeds),
    "padding": round(planning.padding(pack, session.work), 3),
    "compile_seconds": round(seconds[0], 3),
    "run_seconds": round(seconds[1], 3),
    "forecast_seconds": round(forecast, 3),
  }
