"""A pack of every family on a made-up data set, and one session for them."""

import dataclasses
import functools

import numpy as np

from minarch_jax.architectures import Architecture
from minarch_jax.config import Config
from minarch_jax.engine import session as sessions
from minarch_jax.engine.planning import Pack
from tests import made_up

SEEDS = (5, 0)
CONFIG = Config(num_epochs=4, batch_size=8, learning_rate=0.01)  # 20 steps

# Members of a pack, its parent, wider than it need be, and its slots.
PACKS = {
  "dnn": (("dnn:2-3", "dnn:7-1", "dnn:4"), "dnn:9-6", 4),
  "cnn": (("cnn:1-4", "cnn:3-2"), "cnn:3-5", 3),
  "vit": (
    ("vit:p2-d4-l2-h2", "vit:p2-d6-l1-h3-k1-m5"),
    "vit:p2-d8-l2-h3-k2-m12.9",
    2,
  ),
}


@functools.cache
def dataset():
  return made_up.dataset(43, 13, 11)


@functools.cache
def folded():
  """Made-up images in four folds of 14 or 15."""
  held = made_up.dataset(43, 14, 11)
  return dataclasses.replace(held, folds=np.repeat([1, 2, 3], (14, 14, 15)))


def parse(text):
  return Architecture.parse(text)


def pack_of(family, seeds=SEEDS):
  texts, parent, slots = PACKS[family]
  members = tuple(map(parse, texts))
  return Pack(members, tuple(seeds), parse(parent), slots)


@functools.cache
def session():
  """One session, and so one cache of programs, for all that need no other."""
  return sessions.open_session(CONFIG, dataset())
