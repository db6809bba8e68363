"""What every stage starts with: checks, data, devices, identity."""

from typing import NamedTuple

from flax import traverse_util
import jax
import numpy as np

from minarch_jax import architectures, data, pruning, records
from minarch_jax.architectures import Architecture, Problem, Spec
from minarch_jax.compression import grid as grids
from minarch_jax.config import Config, ConfigError
from minarch_jax.engine import session as sessions
from minarch_jax.engine.costs import Machine, Work
from minarch_jax.engine.session import Session
from minarch_jax.stages import provenance
from minarch_jax.types import Dataset


class Facts(NamedTuple):
  """What decides how long the packs of a data set take; no image is read.

  Attributes:
    config: every choice.
    work: the amount of training.
    num_test: images of the test split.
    machine: how fast it is.
  """

  config: Config
  work: Work
  num_test: int
  machine: Machine

  @classmethod
  def of(cls, session: Session) -> "Facts":
    num_test = len(session.dataset.test.y)
    return cls(session.config, session.work, num_test, session.machine)

  def wall(self, seconds: float) -> float:
    """Says how much longer a study takes by what is in progress so long."""
    return seconds / self.config.packs_at_once

  def shared(self, core_seconds: float) -> float:
    """Says how long what takes one device so long is in progress.

    All devices work on it, and share themselves between packs in progress.
    """
    return core_seconds * self.config.packs_at_once / jax.local_device_count()


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
    validation_fraction=config.held_out,
    folds=config.folds,
  )
  if config.batch_size > found.num_train:
    raise ConfigError(
      f"--batch_size={config.batch_size} is larger than the training split of "
      f"{config.dataset} ({found.num_train} images)"
    )
  problem = Problem.of(found)
  for architecture in select(config, problem):
    _check_rules(config, architecture, architecture.spec(problem))
  return found


def _check_rules(
  config: Config, architecture: Architecture, spec: Spec
) -> None:
  """Raises ConfigError where groups of a fixed size do not fit a network."""
  for rule in grids.rules_of(config):
    if ":" not in rule.granularity:
      continue
    shapes = traverse_util.unflatten_dict(
      {
        leaf.path: jax.ShapeDtypeStruct(spec.shape(leaf), np.float32)
        for leaf in spec.leaves
      }
    )
    try:
      pruning.check(
        shapes, rule.scope, rule.granularity, spec, config.sparsities
      )
    except ValueError as error:
      raise ConfigError(
        f"--granularities={rule.granularity} does not fit {architecture}: "
        f"{error}"
      ) from None


def select(config: Config, problem: Problem) -> list[Architecture]:
  """Lists the architectures of a configuration.

  Raises:
    ConfigError: one does not fit the images.
  """
  try:
    return architectures.select(
      config.architectures, config.grid, config.families, problem
    )
  except ValueError as error:
    raise ConfigError(f"--architectures: {error}") from None


def open_session(config: Config, dataset: Dataset | None = None) -> Session:
  """Opens a session on a data set, or on that of the configuration.

  The latter goes by the machine that the results directory was begun for, so
  that what is planned again is planned alike, and its parts are found.
  """
  if dataset is not None:
    return sessions.open_session(config, dataset)
  dataset = data.load_chosen(config)
  return sessions.open_session(config, dataset, provenance.machine(config.out))


def recipe_id(session: Session) -> str:
  """Identifies a training recipe: configuration and bytes of the data.

  An arm on other data has recipes of its own, so that the same networks are
  trained anew where a study asks for them itself.
  """
  arm = session.arm
  apart = arm not in (records.MAIN, records.CONFIRMATION)
  return records.content_id(
    {"recipe": session.config.recipe(), "data": session.dataset.fingerprint}
    | ({"arm": arm} if apart else {})
  )
