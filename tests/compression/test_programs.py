"""Programs of one network: what they give does not depend on its company."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import minarch_jax as ma
from minarch_jax import architectures
from minarch_jax.architectures import Architecture, Problem
from minarch_jax.compression import grid as grids
from minarch_jax.compression import networks, programs, scoring
from minarch_jax.compression.grid import Precision
from minarch_jax.config import Config
from minarch_jax.engine import evaluation, packs
from minarch_jax.engine import session as sessions
from minarch_jax.engine.planning import Pack
from tests import made_up
from tests.made_up import CLASSES, SHAPE

SEEDS = (4, 0)
SETTINGS = [(32, 0), (8, 0), (4, 0), (4, 1)]  # bits, which of the roundings

# Members that differ in depth, or at least in width, and rules.
MIXED = {
  "dnn": (
    ("dnn:4", "dnn:3-12-2"),
    {
      "criteria": ("magnitude", "random", "snip"),
      "granularities": ("element", "unit"),
    },
  ),
  "vit": (
    ("vit:p2-d6-l1-h3-k1-m5", "vit:p2-d4-l2-h2"),
    {"criteria": ("magnitude",)},
  ),
}
TEXTS = {family: texts for family, (texts, _) in MIXED.items()}
TEXTS["cnn"] = ("cnn:2-4", "cnn:3-2")


@functools.cache
def dataset():
  """52 images are four whole chunks of 13, the size of validation."""
  return made_up.dataset(52, 13, 40, fingerprint="")


def transformed(session, pack, params, settings=SETTINGS):
  """Masks by every rule, and networks in every setting, per member [S, N].

  Two lists of lists: rules or settings, then members.
  """
  rules = grids.rules_of(session.config)
  roundings = grids.roundings_of(session.config)
  ranked = scoring.rank(session, pack, params, rules)
  count = len(pack.architectures)
  masks = [
    scoring.masks_of(ranked.placed, rule, ranked.places[rule], [0.6] * count)
    for rule in rules
  ]
  pruned = scoring.pruned(ranked.networks, masks[0])
  rounded = [
    networks.rounded(ranked.placed, pruned, Precision(bits, roundings[i]))
    for bits, i in settings
  ]
  return masks, rounded


def made_of(texts, session):
  """A pack and parameters of its members, all of which are random."""
  members = tuple(map(Architecture.parse, texts))
  parent = architectures.parent(members)
  pack = Pack(members, SEEDS, parent, len(members))
  rng = np.random.default_rng(0)
  return pack, [
    jax.tree.map(
      lambda leaf: (leaf + rng.normal(size=leaf.shape) / 4).astype(np.float32),
      tree,
    )
    for tree in packs.split_members(
      packs.initial(sessions.place(session, pack)), pack, session
    )
  ]


@pytest.mark.parametrize("family", MIXED)
def test_compression_does_not_depend_on_company(family):
  texts, rules = MIXED[family]
  config = Config(batch_size=8, scopes=("global", "layerwise", "erk"))
  config = config.replace(**rules)
  session = sessions.open_session(config, dataset())
  pack, params = made_of(texts, session)
  members = pack.architectures
  together = transformed(session, pack, params)
  for i in range(len(members) - 1):  # the deepest lacks nothing
    alone = Pack(members[i : i + 1], SEEDS, members[i], 1)
    expected = transformed(session, alone, params[i : i + 1])
    for kind, of_member in zip(together, expected, strict=True):
      for each, (tree,) in zip(kind, of_member, strict=True):
        np.testing.assert_array_equal(each[i], tree)


def test_quantizers_do_not_depend_on_company():
  # Those that look at more of a layer than its largest weight.
  names = ("percentile", "mse", "kl", "ternary", "binary", "uint4")
  config = Config(
    batch_size=8,
    criteria=("magnitude",),
    scopes=("global",),
    quant_granularities=("channel",),
    quantizers=names,
  )
  session = sessions.open_session(config, dataset())
  pack, params = made_of(("dnn:5", "dnn:9"), session)
  settings = [(4, i) for i in range(1, len(names) + 1)]
  _, together = transformed(session, pack, params, settings)
  narrow = pack.architectures[0]
  alone = Pack((narrow,), SEEDS, narrow, 1)
  _, expected = transformed(session, alone, params[:1], settings)
  for name, of_members, (tree,) in zip(names, together, expected, strict=True):
    # A mean of magnitudes is a sum in another order.
    np.testing.assert_allclose(of_members[0], tree, rtol=1e-6, err_msg=name)


def loss_of_rounded(parent, members, params):
  """Sums per chunk of training images, inputs in 32 and 2 bits: [A, 2, n]."""
  pack = Pack(members, SEEDS, parent, len(members))
  session = sessions.open_session(Config(batch_size=8), dataset())
  padded = packs.stack_members(
    [jax.tree.map(lambda leaf: leaf[None], tree) for tree in params],
    pack,
    session,
  )
  totals = programs.make_rounded_totals(
    ma.make_model(parent, Problem(SHAPE, CLASSES))
  )

  def widths(params, sizes):
    def one(bits):
      x, chunks = dataset().train.x, training_chunks()
      order = jnp.arange(4)
      return totals(params, bits, sizes, x, chunks, order, 0, 4).loss

    return jax.lax.map(one, jnp.array([32, 2]))

  mapped = jax.jit(jax.vmap(widths))
  first = jax.tree.map(lambda leaf: leaf[0], padded)
  return mapped(first, sessions.sizes_of(pack, session))


def training_chunks():
  return jax.tree.map(jnp.asarray, evaluation.chunk(dataset().train, 13))


@pytest.mark.parametrize("family", TEXTS)
def test_ranges_do_not_depend_on_company(family):
  members = tuple(map(Architecture.parse, TEXTS[family]))
  rng = np.random.default_rng(0)
  with jax.enable_x64(True):  # sums in another order give the same codes
    params = [
      jax.tree.map(
        lambda leaf: np.array(leaf) + rng.normal(size=leaf.shape) / 2,
        ma.make_model(a, Problem(SHAPE, CLASSES)).init(jax.random.key(0)),
      )
      for a in members
    ]
    parent = architectures.parent(members)
    together = loss_of_rounded(parent, members, params)
    for i, a in enumerate(members[: len(members) - 1]):
      alone = loss_of_rounded(a, (a,), params[i : i + 1])
      np.testing.assert_allclose(together[i], alone[0], rtol=1e-9)
      whole, narrow = alone[0]
      assert np.abs(narrow / whole - 1).max() > 0.05
      # 32 bits are the network as it is.
      plain = evaluation.make_totals(
        ma.make_model(a, Problem(SHAPE, CLASSES)).apply
      )
      score = jax.jit(plain)(
        params[i], None, training_chunks(), np.arange(4), 0, 4
      )
      np.testing.assert_allclose(whole, score.loss, rtol=1e-12)
