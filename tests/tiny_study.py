"""A whole study of a few small networks on made-up images."""

import dataclasses
import functools
import os
from unittest import mock

import jax
import polars as pl
import polars.testing

from minarch_jax import records, study
from minarch_jax.architectures import Architecture, Problem
from minarch_jax.config import Config
from minarch_jax.engine import programs
from minarch_jax.engine import session as sessions
from minarch_jax.stages import setup
from tests import made_up
from tests.made_up import CLASSES, SHAPE

PROBLEM = Problem(SHAPE, CLASSES)
CONFIG = Config(
  dataset="made-up",
  architectures=("dnn:3", "dnn:4", "cnn:2", "dnn:3-3"),
  num_seeds=2,
  num_epochs=3,
  batch_size=8,
  learning_rate=0.01,
  criteria=("magnitude", "random"),
  scopes=("global",),
  sparsities=(0.0, 0.8),
  bits=(32, 4),
  dense_bits=(),
  design="sweep",
  quant_granularities=("channel",),
  finetune_share=0.5,
  finetune="all",
  first_seed=3,
  packs_at_once=1,
)
MEMBERS = [Architecture.parse(name) for name in CONFIG.architectures]


@functools.cache
def dataset():
  return made_up.dataset(52, 13, 11, spread=2.0, fingerprint="bytes")


# One table for all sessions: a program is found by all that it depends on.
PROGRAMS = programs.Table()


def open_session(config=CONFIG, **changes):
  config, made = config.replace(**changes), dataset()
  if config.dataset != CONFIG.dataset:  # another set of the same shapes
    name = config.dataset
    made = dataclasses.replace(made, name=name, fingerprint=f"bytes of {name}")
  session = sessions.open_session(config, made)
  return dataclasses.replace(session, programs=PROGRAMS)


def on_made_up_data():
  """Where studies find the made-up images, which no flag can name."""
  return mock.patch.multiple(
    setup, check=lambda config: None, open_session=open_session
  )


def run(out, **changes):
  """Runs the study into a directory; the lines about the packs it ran."""
  config = CONFIG.replace(out=str(out), **changes)
  before = packs(out)
  with on_made_up_data():
    study.run(config)
  return packs(out)[len(before) :]


def packs(out):
  """The lines of study.json about packs."""
  found = records.read_json(os.path.join(out, "study.json"))
  return found.get("packs", [])


def files(out):
  """Every file and when it was written."""
  found = {}
  for folder, _, names in os.walk(out):
    for name in names:
      path = os.path.join(folder, name)
      found[os.path.relpath(path, out)] = os.stat(path).st_mtime_ns
  return found


def assert_same_tables(found, expected):
  """Bit for bit, but for the measured seconds."""
  for name, table in expected._asdict().items():
    pl.testing.assert_frame_equal(
      getattr(found, name).drop("seconds", strict=False),
      table.drop("seconds", strict=False),
      check_exact=True,
    )


class Interrupted(Exception):
  """Pulls the plug."""


def interrupting(function, calls):
  """Lets a function run so often, then fails as a pulled plug would."""
  left = iter(range(calls))

  def run(*arguments, **options):
    if next(left, None) is None:
      raise Interrupted
    return function(*arguments, **options)

  return run


def refusing(function, most):
  """A device without room for more than so many networks of a pack."""

  def run(session, pack, *arguments, **options):
    if len(pack.architectures) > most:
      raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
    return function(session, pack, *arguments, **options)

  return run
