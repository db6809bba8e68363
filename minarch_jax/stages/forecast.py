"""What a sweep or a study will run, and how long that takes, in advance."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from minarch_jax.architectures import Architecture, ladder, Problem
from minarch_jax.config import Config
from minarch_jax.engine import costs, memory, packs, planning, population
from minarch_jax.engine import machine as machines
from minarch_jax.engine.costs import Machine, Work
from minarch_jax.engine.machine import Seen
from minarch_jax.engine.planning import Pack
from minarch_jax.engine.session import Session
from minarch_jax.stages import arms, compress, provenance, setup, train
from minarch_jax.stages import representatives as choices
from minarch_jax.stages.progress import clock
from minarch_jax.stages.setup import Facts
from minarch_jax.stages.working import Statistics

TRAINING, COMPRESSION, ARMS = "training", "compression", "arms"
COMPILATION, REST = "compilation", "start and report"
REST_SECONDS = 7.0  # imports, the data, analyses and figures


class Plan(NamedTuple):
  """What a sweep, or the study around it, runs on one data set.

  Attributes:
    lines: a line of text per pack, and what else there is to say.
    num_networks, num_packs: of the sweep.
    programs: what tells its programs from each other, and from those of plans
      on images of other shapes; with the seconds of compiling each.
    seconds: for how long the packs of each part are in progress, added up.
  """

  lines: list[str]
  num_networks: int
  num_packs: int
  programs: dict[Any, float]
  seconds: dict[str, float]


def describe(config: Config, *, whole: bool = True) -> str:
  """Describes what a sweep would train, and a study beside, as text.

  Several data sets have a table each, and a line about them all.

  Args:
    config: every choice.
    whole: whether a study is foretold, or its sweep alone.

  Raises:
    ConfigError: as `setup.check`.
  """
  population.use_cores()
  config.on_each(setup.check)
  machine = provenance.machine(config.out) or machines.here()
  parts = config.each()
  plans = [_plan(part, machine, whole, len(parts) == 1) for part in parts]
  texts = [
    "\n".join([*plan.lines, _cost(config, plan.programs, plan.seconds)])
    for plan in plans
  ]
  if len(plans) > 1:
    texts.append(_together(config, plans))
  return "\n\n".join(texts)


def planned(config: Config, machine: Machine) -> tuple[Facts, list[Pack]]:
  """Plans a sweep of one data set from facts alone: no image is read."""
  found = setup.check(config)
  work = Work(
    Problem.of(found),
    found.num_train,
    found.num_validation,
    config.batch_size,
    config.num_epochs,
  )
  todo = planning.plan(
    setup.select(config, work.problem),
    list(config.seeds),
    work,
    machine=machine,
    devices=machine.devices or jax.local_device_count(),
    at_once=config.packs_at_once,
    memory_limit=memory.limit(config),
  )
  return Facts(config, work, found.num_test, machine), todo


def _plan(config: Config, machine: Machine, whole: bool, alone: bool) -> Plan:
  facts, todo = planned(config, machine)
  members = list(dict.fromkeys(a for p in todo for a in p.architectures))
  head = f"{'parent':<28}{'members':>8}{'seeds':>6}{'padding':>8}{'GiB':>7}"
  lines = [f"{head}{'seconds':>9}"]
  lines += [_line(facts, pack) for pack in todo]
  lines.append(
    f"{len(members)} architectures x {config.num_seeds} seeds on "
    f"{config.dataset} ({facts.work.num_steps:,} steps each): {len(todo)} packs"
  )
  seconds = {TRAINING: sum(train.seconds_of(facts, pack) for pack in todo)}
  if whole:
    seconds[COMPRESSION] = _compressing(facts, members, todo)
    found = arms.forecast(config, facts.work.problem, todo, alone=alone)
    seconds[ARMS] = sum(_of_arms(facts, found))
    lines += _about(config, found)
  if gaps := _gaps(config, facts.work.problem, members):
    lines.append(f"no whole widths make: {'; '.join(gaps)}")
  programs = {
    (facts.work, pack.program): costs.compile_seconds(pack.parent, machine)
    for pack in todo
  }
  return Plan(
    lines, len(members) * config.num_seeds, len(todo), programs, seconds
  )


def _compressing(
  facts: Facts, members: Sequence[Architecture], todo: Sequence[Pack]
) -> float:
  """Foretells compression; what is retrained is chosen when all is trained."""
  config, chosen = facts.config, []
  if config.finetune_share and config.finetune == "all":
    chosen = list(members)
  elif config.finetune_share:
    for family in dict.fromkeys(a.family for a in members):
      group = [a for a in members if a.family == family]
      chosen += choices.around(facts.work.problem, group)
  design = compress.design_of(config, chosen)
  return sum(compress.seconds_of(facts, pack, design) for pack in todo)


def _of_arms(facts: Facts, found: arms.Forecast) -> Iterator[float]:
  for pack, times, design in found.packs:
    yield times * train.seconds_of(facts, pack)
    if design is not None:
      yield compress.seconds_of(facts, pack, design)


def _about(config: Config, found: arms.Forecast) -> list[str]:
  """Says what the arms are."""
  if not found.fresh:
    return []
  fresh = arms.SIZES[config.design].fresh * config.num_seeds
  return [
    f"beside it, --design={config.design}: {len(found.longer)} architectures "
    f"x {config.num_seeds} seeds on noisy labels, {arms.LONGER} times as long; "
    f"{len(found.harder)} x {config.num_seeds} on blurred images; at most "
    f"{found.fresh} x {fresh} fresh seeds of what the sweep chooses"
  ]


def _gaps(
  config: Config, problem: Problem, members: Sequence[Architecture]
) -> list[str]:
  """Lists cells of the ladder that no architecture fills."""
  if config.architectures or config.grid != "ladder":
    return []
  return ladder.gaps(problem, sorted(members, key=str))


def _together(config: Config, plans: Sequence[Plan]) -> str:
  programs: dict[Any, float] = {}
  for plan in plans:
    programs |= plan.programs  # data sets of equal shapes share them
  seconds = {
    part: sum(plan.seconds[part] for plan in plans) for part in plans[0].seconds
  }
  return (
    f"together: {sum(plan.num_networks for plan in plans):,} networks on "
    f"{len(plans)} data sets: {sum(plan.num_packs for plan in plans)} packs\n"
    + _cost(config, programs, seconds)
  )


def _cost(
  config: Config, programs: Mapping[Any, float], seconds: Mapping[str, float]
) -> str:
  """Says how long all parts take, a few packs being in progress at a time."""
  parts = {**seconds, COMPILATION: sum(programs.values())}
  shares = {
    part: own / config.packs_at_once for part, own in parts.items() if own
  }
  shares[REST] = REST_SECONDS
  each = ", ".join(f"{part} {clock(own)}" for part, own in shares.items())
  return (
    f"about {clock(sum(shares.values()))} in all: {each} (of {len(programs)} "
    f"programs, less where an earlier run has left them) on {machines.name()}"
  )


def _line(facts: Facts, pack: Pack) -> str:
  work = facts.work
  held = costs.memory(
    pack.parent, pack.slots, len(pack.seeds), work, jax.local_device_count()
  )
  seconds = facts.wall(train.seconds_of(facts, pack))
  return (
    f"{str(pack.parent):<28}{len(pack.architectures):>8}"
    f"{len(pack.seeds):>6}{planning.padding(pack, work):>8.2f}"
    f"{held / 2**30:>7.2f}{seconds:>9.1f}"
  )


# --- afterwards --------------------------------------------------------------


def seen(session: Session, lines: Sequence[Statistics]) -> Iterator[Seen]:
  """Sets what packs and programs took beside what was foretold.

  Args:
    session: what was run.
    lines: about its packs, for study.json.
  """
  machine = session.machine
  told = {"train": costs.RUNNING, "compress": costs.COMPRESSING}
  for line in lines:
    if line["stage"] in told:
      what, family = told[line["stage"]], line["parent"].partition(":")[0]
      forecast = line["forecast_seconds"] / machine.factor(what, family)
      yield Seen(what, family, line["run_seconds"], forecast)
  for static, took in session.programs.compiled(packs.RUN):
    parent = static["network"].architecture
    forecast = costs.compile_seconds(parent)
    yield Seen(costs.COMPILING, parent.family, took, forecast)
