"""The straight line: check, open, train, compress, run the arms, describe.

The only module that knows the order of things. Each stage returns at once for
what the results directory already holds, so a study that was interrupted goes
on where it stopped, and any stage runs alone on what an earlier one left. A
study of several data sets walks it for one after the other. The binaries
walk it on files, notebooks and benchmarks in memory.
"""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
from typing import NamedTuple

import jax

from minarch_jax.config import Config, ConfigError
from minarch_jax.engine import keeping, packs
from minarch_jax.engine import machine as machines
from minarch_jax.engine import session as sessions
from minarch_jax.engine.packs import Trained
from minarch_jax.engine.planning import Pack
from minarch_jax.engine.programs import Table
from minarch_jax.engine.session import Session
from minarch_jax.stages import (
  arms,
  forecast,
  mixing,
  provenance,
  setup,
  watching,
)
from minarch_jax.stages import compress as compression
from minarch_jax.stages import train as training
from minarch_jax.stages.progress import Progress, say
from minarch_jax.stages.working import Statistics


class Walk(NamedTuple):
  """One walk along the line.

  Attributes:
    config: every choice, on one data set.
    train: whether to train what is missing; otherwise all must be there.
    prune, quantize: which axes of the compression grid to walk.
    alone: whether the study has no other data set.
  """

  config: Config
  train: bool = True
  prune: bool = True
  quantize: bool = True
  alone: bool = True


def walks(config: Config, **stages: bool) -> list[Walk]:
  """Lists the walks of a study, in order.

  Args:
    config: every choice.
    **stages: which are walked, as in Walk.
  """
  configs = config.each()
  return [Walk(c, **stages, alone=len(configs) == 1) for c in configs]


def run(config: Config, **stages: bool) -> list[str]:
  """Runs stages of a study and leaves records and checkpoints in <out>.

  All stages together are a study, which then runs the arms of its design.

  Args:
    config: every choice.
    **stages: which are walked, as in Walk; all unless told otherwise.

  Returns:
    The fingerprints of the data sets, in order.

  Raises:
    ConfigError: a value that cannot be used on one of the data sets, before
      anything is trained, or networks that are missing.
  """
  config.on_each(setup.check)
  watching.follow(config.out, config.log)  # what an earlier run left
  todo = walks(config, **stages)
  fingerprints, programs = [], None
  for number, walk in enumerate(todo, 1):
    if len(todo) > 1:
      say(f"{walk.config.dataset} ({number} of {len(todo)})")
    with opened(walk.config, config, programs) as (session, statistics):
      _along(walk, session, statistics)
    fingerprints.append(session.dataset.fingerprint)
    programs = session.programs  # data sets of equal shapes share them
  return fingerprints


def is_first() -> bool:
  """Says whether this process reports, of several that are one program."""
  return jax.process_index() == 0


def _along(walk: Walk, session: Session, statistics: list[Statistics]) -> None:
  """Walks the line once, and adds to the statistics as it goes."""
  out = walk.config.out
  if walk.train:
    statistics += training.sweep(session, out)
  if walk.prune or walk.quantize:
    statistics += compression.compress(
      session, out, prune=walk.prune, quantize=walk.quantize
    )
  if walk.train and walk.prune and walk.quantize:
    statistics += arms.run(session, out, alone=walk.alone)


@contextlib.contextmanager
def opened(
  config: Config, whole: Config | None = None, programs: Table | None = None
) -> Iterator[tuple[Session, list[Statistics]]]:
  """Opens a session on the data of a checked configuration.

  What the caller adds to the list, one line per pack, is left with the
  configuration in <out>/study.json, whatever happens.

  Args:
    config: every choice, on one data set.
    whole: the configuration of the study, where that has several.
    programs: those that another session has compiled.

  Raises:
    ConfigError: <out> holds networks of another study, as `mixing.check` says.
  """
  session = setup.open_session(config)
  if programs is not None:
    session = dataclasses.replace(session, programs=programs)
  mixing.check(session, config.out)
  session = mixing.agreed(session, config.out)
  statistics: list[Statistics] = []
  try:
    yield session, statistics
  finally:
    provenance.write(session, config.out, statistics, whole)
    machines.learn(forecast.seen(session, statistics))


def train_packs(
  session: Session,
  todo: Sequence[Pack],
  keeper_of: keeping.KeeperOf = keeping.nowhere,
  with_state: bool = False,
) -> list[Trained]:
  """Trains planned packs, largest first, and shows how far it is.

  Args:
    keeper_of, with_state: as for `packs.train`.
  """
  if session.config.executor != "local":
    raise ConfigError(
      f"executor={session.config.executor!r} leaves files; what is trained in "
      "memory is trained here: leave it out, or run experiments.sweep"
    )
  facts = setup.Facts.of(session)
  costs = {pack: training.seconds_of(facts, pack) for pack in todo}
  shares = training.shares_of(facts, costs)
  with Progress("train", sum(shares.values())) as progress:

    def run(pack: Pack) -> list[Trained]:
      share = shares[pack] / session.work.num_epochs
      return packs.train_or_split(
        session,
        pack,
        lambda epochs: progress.advance(epochs * share),
        keeper_of,
        with_state,
      )

    return sum(sessions.together(session, todo, run), [])
