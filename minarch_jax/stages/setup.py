"""What every stage starts with: checks, data, devices, identity."""

from flax import traverse_util
import jax
import numpy as np

from minarch_jax import architectures, data, pruning, records
from minarch_jax.architectures import Architecture, Problem, Spec
from minarch_jax.compression import grid as grids
from minarch_jax.config import Config, ConfigError
from minarch_jax.engine import session as sessions
from minarch_jax.engine.session import Session
from minarch_jax.types import Dataset


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
  """Opens a session on a data set, or on that of the configuration."""
  return sessions.open_session(config, dataset or data.load_chosen(config))


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
