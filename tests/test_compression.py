"""Packs compressed: a grid's cell is what the public functions give.

A cell of the grid is prune, mask, quantize, dequantize and score of the network
alone; retraining keeps the masks and, without pruning, is plain training.
"""

import dataclasses
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import minarch_jax as ma
from minarch_jax import (
  architectures,
  compressing,
  compression,
  evaluation,
  grading,
  models,
  packs,
  planning,
  pruning,
  quantization,
  study,
  training,
)
from minarch_jax.architectures import Architecture
from minarch_jax.compression import Rule
from minarch_jax.config import Config, QUANTIZERS
from minarch_jax.types import Batch
from tests import made_up
from tests.made_up import CLASSES, SHAPE

SEEDS = (4, 0)
SPARSITIES = (0.0, 0.3, 0.8)
# Members compared with networks alone, each of which is compiled.
COMPARED = {"dnn": (0, 1), "cnn": (1,), "vit": (1,)}
SETTINGS = [(32, 0), (8, 0), (4, 0), (4, 1)]  # bits, rounding

# For each family members, a parent and the rules its grid compares.
CASES = {
  "dnn": (
    ("dnn:5-6", "dnn:4"),
    "dnn:9-6",
    {"criteria": ("magnitude", "snip"), "scopes": ("global", "layerwise")},
  ),
  "cnn": (
    ("cnn:2-4", "cnn:3-2"),
    "cnn:3-5",
    {"scopes": ("erk",), "granularities": ("element", "unit")},
  ),
  "vit": (
    ("vit:p2-d4-l1-h2", "vit:p2-d6-l1-h3-k1-m5"),
    "vit:p2-d8-l1-h3-k2-m9",
    {"criteria": ("random", "wanda"), "scopes": ("layerwise",)},
  ),
}


@functools.cache
def dataset(num_train=52):
  """52 images are four whole chunks of 13, the size of validation."""
  return made_up.dataset(num_train, 13, 40, fingerprint="")


def config_of(family):
  return Config(
    num_epochs=6,
    batch_size=8,
    learning_rate=0.02,
    finetune_share=1 / 3,
    finetune_learning_rate=0.01,
    criteria=("magnitude",),
    sparsities=SPARSITIES,
  ).replace(**CASES[family][2])


@functools.cache
def trained(family):
  texts, parent, _ = CASES[family]
  members = tuple(map(Architecture.parse, texts))
  pack = planning.Pack(members, SEEDS, Architecture.parse(parent), 3)
  session = packs.open_session(config_of(family), dataset())
  return session, packs.train(session, pack)


def rules_of(family):
  return compressing.rules_of(trained(family)[0].config)


def cells_of(family):
  pairs = [(r, s) for r in range(len(rules_of(family))) for s in SPARSITIES]
  return compression.make_cells(pairs, SETTINGS)


@functools.cache
def ranked(family):
  session, found = trained(family)
  return compressing.rank(session, found.pack, found.params, SPARSITIES)


@functools.cache
def graded(family):
  return compressing.grid(
    ranked(family), trained(family)[1].pack, cells_of(family)
  )


def of_members(family, outcome, members=(0, 1)):
  """The outcome of each slot, with the leaves that its member has."""
  pack = trained(family)[1].pack
  parent = pack.parent.spec(SHAPE, CLASSES)
  return [
    compressing.of_member(
      outcome, i, pack.architectures[m].spec(SHAPE, CLASSES), parent
    )
    for i, m in enumerate(members)
  ]


# --- one network by the public functions -------------------------------------


@functools.cache
def pruner(family, member):
  """prune(params, seed, sparsity) -> the masked tree for each rule."""
  architecture = trained(family)[1].pack.architectures[member]
  spec = architecture.spec(SHAPE, CLASSES)
  model = ma.make_model(architecture, SHAPE, CLASSES)
  batch = dataset().train

  def loss(params, batch):
    logits = model.apply(params, batch.x)
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, batch.y
    ).mean()

  def prune(params, seed, sparsity):
    context = {
      "key": training.key_for(seed, training.PRUNE),
      "loss": loss,
      "batch": batch,
      "activations": pruning.capture(model.apply, params, batch.x),
    }
    return [
      ma.apply_masks(
        params,
        ma.prune(
          *(params, sparsity, rule.criterion, rule.scope),
          granularity=rule.granularity,
          spec=spec,
          **context,
        ),
      )
      for rule in rules_of(family)
    ]

  mapped = jax.jit(jax.vmap(prune, (0, 0, None)))
  return lambda params, s: mapped(params, np.array(SEEDS), np.float32(s))


def scored(architecture):
  """score(params) -> the Outcome of one network."""
  spec = architecture.spec(SHAPE, CLASSES)
  model = ma.make_model(architecture, SHAPE, CLASSES)

  def score(params):
    flat = models.flatten(params)
    counts = [jnp.count_nonzero(flat[leaf.path]) for leaf in spec.leaves]
    hits = [
      evaluation.losses(model.apply(params, batch.x), batch.y)[1].sum()
      for batch in (dataset().validation, dataset().test)
    ]
    return compression.Outcome(*hits, jnp.stack(counts))

  return score


@functools.cache
def scorer(family, member):
  """outcomes(params) -> the Outcome [S, ...] of each of SETTINGS."""
  session, found = trained(family)
  score = scored(found.pack.architectures[member])
  granularities = session.config.quant_granularities

  def outcomes(params):
    return [
      score(ma.dequantize(ma.quantize(params, bits, granularities[rounding])))
      for bits, rounding in SETTINGS
    ]

  return jax.jit(jax.vmap(outcomes))


@pytest.mark.parametrize("family", CASES)
def test_a_cell_is_what_the_public_functions_give(family):
  _, found = trained(family)
  outcomes = of_members(family, graded(family))
  for i in COMPARED[family]:
    outcome = outcomes[i]
    cells = iter(range(outcome.test.shape[1]))
    pruned = {s: pruner(family, i)(found.params[i], s) for s in SPARSITIES}
    for rule, s in (
      (r, s) for r in range(len(rules_of(family))) for s in pruned
    ):
      for alone in scorer(family, i)(pruned[s][rule]):
        cell = next(cells)
        for part, expected in zip(outcome, alone, strict=True):
          np.testing.assert_array_equal(part[:, cell], expected, f"{rule} {s}")


def test_criteria_look_at_training_images_only():
  config = config_of("dnn").replace(criteria=("snip",), scopes=("global",))
  session = packs.open_session(config, dataset(30))  # three chunks of 13
  pack, params = trained("dnn")[1].pack, trained("dnn")[1].params
  _, last = session.splits["train"]
  others = session.data._replace(x=session.data.x.at[last:].set(9.0))
  cuts = [
    compressing.rank(each, pack, params, [0.6]).cuts
    for each in (session, dataclasses.replace(session, data=others))
  ]
  jax.tree.map(np.testing.assert_array_equal, *cuts)


# --- a pack of mixed depth, and its networks alone ---------------------------

MIXED = {
  "dnn": (
    ("dnn:5-6", "dnn:4", "dnn:3-12-2"),
    {"criteria": ("magnitude",), "granularities": ("element", "unit")},
  ),
  "vit": (
    ("vit:p2-d6-l1-h3-k1-m5", "vit:p2-d4-l2-h2"),
    {"criteria": ("magnitude",)},
  ),
}


def transformed(session, pack, params, settings=SETTINGS):
  """Masks by every rule, and parameters in every setting, per member [S, ...].

  Two lists of lists: rules or settings, then members.
  """
  ranking = compressing.rank(session, pack, params, [0.6])
  transform = compression.make_transform(
    pack.parent.spec(SHAPE, CLASSES), compressing.roundings_of(session.config)
  )

  def every(params, cuts, sizes):
    def values(setting):
      return transform(params, cuts[0], 1, *setting, sizes)[0]

    rounded = jax.lax.map(values, np.array(settings, np.int32))
    masks = [transform(params, cut, 1, 32, 0, sizes)[1] for cut in cuts]
    return masks, rounded

  mapped = jax.vmap(jax.vmap(every), (0, 0, None))
  sizes = packs.sizes_of(ranking.placed.pack, session)
  masks, rounded = jax.device_get(
    jax.jit(mapped)(ranking.params, jax.device_get(ranking.cuts), sizes)
  )
  rounded = [
    jax.tree.map(lambda leaf, i=i: leaf[:, :, i], rounded)
    for i in range(len(settings))
  ]
  return [
    [packs.split_members(tree, pack, session) for tree in trees]
    for trees in (masks, rounded)
  ]


def made_of(texts, session):
  """A pack and parameters of its members, all of which are random."""
  members = tuple(map(Architecture.parse, texts))
  parent = architectures.parent(members)
  pack = planning.Pack(members, SEEDS, parent, len(members))
  rng = np.random.default_rng(0)
  return pack, [
    jax.tree.map(
      lambda leaf: (leaf + rng.normal(size=leaf.shape) / 4).astype(np.float32),
      tree,
    )
    for tree in packs.split_members(
      packs.initial(packs.place(session, pack)), pack, session
    )
  ]


@pytest.mark.parametrize("family", MIXED)
def test_compression_does_not_depend_on_company(family):
  texts, rules = MIXED[family]
  config = config_of("dnn").replace(
    scopes=("global", "layerwise", "erk"), **rules
  )
  session = packs.open_session(config, dataset())
  pack, params = made_of(texts, session)
  members = pack.architectures
  together = transformed(session, pack, params)
  for i in range(len(members) - 1):  # the deepest lacks nothing
    alone = planning.Pack(members[i : i + 1], SEEDS, members[i], 1)
    expected = transformed(session, alone, params[i : i + 1])
    for kind, of_member in zip(together, expected, strict=True):
      for each, (tree,) in zip(kind, of_member, strict=True):
        assert jax.tree.structure(each[i]) == jax.tree.structure(tree)
        jax.tree.map(np.testing.assert_array_equal, each[i], tree)


@pytest.mark.parametrize("family", CASES)
def test_dense_in_32_bits_is_the_trained_network(family):
  cells, scores = cells_of(family), trained(family)[1].scores
  neutral = (cells.sparsity == 0) & (cells.bits == 32)
  assert neutral.sum() == len(rules_of(family))
  for split in ("validation", "test"):
    hits = getattr(graded(family), split)[..., neutral]
    expected = getattr(scores, split).correct[..., None]
    np.testing.assert_array_equal(hits, np.broadcast_to(expected, hits.shape))


def test_a_grid_is_its_cells_in_any_order():
  session, found = trained("dnn")
  whole, cells = graded("dnn"), cells_of("dnn")
  order = np.random.default_rng(0).permutation(len(cells.rule))[:12]
  some = compression.Cells(*(column[order] for column in cells))
  programs = len(session.programs)
  outcome = compressing.grid(ranked("dnn"), found.pack, some)
  for part, expected in zip(outcome, whole, strict=True):
    np.testing.assert_array_equal(part, expected[:, :, order])
  # Rules, sparsities and bits are data: no cell costs a compilation.
  assert len(session.programs) == programs


def test_rules_are_every_combination_the_main_one_first():
  config = Config().replace(
    criteria=("magnitude", "snip", "random"),
    scopes=("erk", "global"),
    granularities=("element", "unit"),
  )
  rules = compressing.rules_of(config)
  assert len(rules) == len(set(rules)) == 8 + 2
  assert rules[0] == Rule("magnitude", "erk", "element")
  # The random control has no opinion on layers.
  assert {rule.scope for rule in rules if rule.criterion == "random"} == {"erk"}


def test_a_diverged_network_is_compressed_as_data():
  session, found = trained("dnn")
  params = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), found.params)
  cells = compression.join(cells_of("dnn"), narrow_cells((8,)))
  outcome, *_ = compressing.compress(session, found.pack, params, cells, [], [])
  assert not outcome.validation.any() and not outcome.test.any()


# --- other quantizers --------------------------------------------------------


def form_of(row):
  """What a row says in the words of `quantize`: bits, granularity, calibration.

  It may name a calibration of integers or a format, which has its own.
  """
  name, granularity = row["quantizer"], row["quant_granularity"]
  granularity = "channel" if granularity == "none" else granularity
  if name in quantization.FORMATS:
    return name, granularity, None
  return row["bits"], granularity, None if name == "none" else name


def test_a_row_of_a_quantizer_is_what_the_public_functions_give():
  session, found = trained("dnn")
  pack, member = found.pack, 1  # narrower and shallower than its parent
  config = session.config.replace(quantizers=QUANTIZERS, bits=(32, 4))
  programs = {k: v for k, v in session.programs.items() if k[0] != "transform"}
  session = dataclasses.replace(session, config=config, programs=programs)
  cells = study.grid_of(config, prune=False, quantize=True)
  ranking = compressing.rank(session, pack, found.params, SPARSITIES)
  outcome = compressing.grid(ranking, pack, cells)
  rows = grading.rows(session, "run", pack, outcome, cells)[member]
  assert set(rows["quantizer"]) == {"none", *QUANTIZERS}
  rows = [rows.filter(seed=seed).to_dicts() for seed in SEEDS]
  forms = list(map(form_of, rows[0]))
  architecture = pack.architectures[member]
  score = scored(architecture)

  def alone(params):
    return [
      score(ma.dequantize(ma.quantize(params, *form, calibration=calibration)))
      for *form, calibration in forms
    ]

  expected = jax.jit(jax.vmap(alone))(found.params[member])
  leaves = architecture.spec(SHAPE, CLASSES).leaves
  one = jax.tree.map(lambda leaf: leaf[0], found.params[member])
  for i, (validation, test, nonzeros) in enumerate(expected):
    for j in range(len(SEEDS)):
      row, counts = rows[j][i], nonzeros[j].tolist()
      named = {
        "/".join(leaf.path): count
        for leaf, count in zip(leaves, counts, strict=True)
      }
      size = quantization.storage_bytes(one, *forms[i][:2], nonzeros=named)
      assert row["val_accuracy"] == validation[j] / 13, forms[i]
      assert row["test_accuracy"] == test[j] / 40, forms[i]
      assert (row["nonzeros"], row["bytes"]) == (sum(counts), size), forms[i]


def test_quantizers_do_not_depend_on_company():
  # Those that look at more of a layer than its largest weight.
  names = ("percentile", "mse", "kl", "ternary", "binary", "uint4")
  config = Config(
    criteria=("magnitude",),
    scopes=("global",),
    quant_granularities=("channel",),
    quantizers=names,
  )
  session = packs.open_session(config.replace(batch_size=8), dataset())
  pack, params = made_of(("dnn:5", "dnn:9"), session)
  settings = [(4, i) for i in range(1, len(names) + 1)]
  _, together = transformed(session, pack, params, settings)
  narrow = pack.architectures[0]
  alone = planning.Pack((narrow,), SEEDS, narrow, 1)
  _, expected = transformed(session, alone, params[:1], settings)
  for name, of_members, (tree,) in zip(names, together, expected, strict=True):
    for x, y in zip(*map(jax.tree.leaves, (of_members[0], tree)), strict=True):
      # A mean of magnitudes is a sum in another order.
      np.testing.assert_allclose(x, y, rtol=1e-6, err_msg=name)


# --- activations of few bits -------------------------------------------------

WIDTHS = (32, 8, 3)


def narrow_cells(widths):
  return compression.make_cells([(0, 0.0)], [(4, 0)], widths)


@pytest.mark.parametrize("family", CASES)
def test_rounding_inputs_is_what_the_public_functions_give(family):
  _, found = trained(family)
  i = COMPARED[family][-1]
  model = ma.make_model(found.pack.architectures[i], SHAPE, CLASSES)

  def alone(params):
    params = ma.dequantize(ma.quantize(params, 4))
    ranges = quantization.calibrate(model.apply, params, dataset().train.x)
    return [
      [
        evaluation.losses(model.apply(params, b.x, tap=tap), b.y)[1].sum()
        for tap in (quantization.make_tap(ranges, bits) for bits in WIDTHS)
      ]
      for b in (dataset().validation, dataset().test)
    ]

  expected = jax.jit(jax.vmap(alone))(found.params[i])
  outcome = compressing.grid(ranked(family), found.pack, narrow_cells(WIDTHS))
  for hits, each in zip(outcome[:2], expected, strict=True):
    # A sum in another order may round an input to the next code.
    np.testing.assert_allclose(hits[:, i], np.stack(each, -1), atol=1)
  assert np.ptp(outcome.test[:, i], -1).max() > 1


def loss_of_rounded(parent, members, params):
  """Sums per chunk of training images, inputs in 32 and 2 bits: [A, 2, n]."""
  pack = planning.Pack(members, SEEDS, parent, len(members))
  session = packs.open_session(Config(batch_size=8), dataset())
  padded = packs.stack_members(
    [jax.tree.map(lambda leaf: leaf[None], tree) for tree in params],
    pack,
    session,
  )
  totals = compression.make_rounded_totals(
    ma.make_model(parent, SHAPE, CLASSES)
  )

  def widths(params, sizes):
    def one(bits):
      x, chunks = dataset().train.x, training_chunks()
      return totals(params, bits, sizes, x, chunks, 0, 4).loss

    return jax.lax.map(one, jnp.array([32, 2]))

  mapped = jax.jit(jax.vmap(widths))
  first = jax.tree.map(lambda leaf: leaf[0], padded)
  return mapped(first, packs.sizes_of(pack, session))


def training_chunks():
  return jax.tree.map(jnp.asarray, evaluation.chunk(dataset().train, 13))


@pytest.mark.parametrize("family", CASES)
def test_ranges_do_not_depend_on_company(family):
  texts = MIXED[family][0] if family in MIXED else CASES[family][0]
  members = tuple(map(Architecture.parse, texts))
  rng = np.random.default_rng(0)
  with jax.enable_x64(True):  # sums in another order give the same codes
    params = [
      jax.tree.map(
        lambda leaf: np.array(leaf) + rng.normal(size=leaf.shape) / 2,
        ma.make_model(a, SHAPE, CLASSES).init(jax.random.key(0)),
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
      plain = evaluation.make_totals(ma.make_model(a, SHAPE, CLASSES).apply)
      score = jax.jit(plain)(params[i], None, training_chunks(), 0, 4)
      np.testing.assert_allclose(whole, score.loss, rtol=1e-12)


def test_ranges_come_from_training_images_only():
  config = config_of("dnn").replace(criteria=("magnitude",), scopes=("global",))
  session = packs.open_session(config, dataset(30))  # three chunks of 13
  pack, params = trained("dnn")[1].pack, trained("dnn")[1].params
  x = session.data.x

  def hits(x):
    changed = dataclasses.replace(session, data=session.data._replace(x=x))
    placed = compressing.rank(changed, pack, params, (0.0,))
    found = compressing.grid(placed, pack, narrow_cells((3,)))
    return {"validation": found.validation, "test": found.test}

  before = hits(x)
  for split, other in (("validation", "test"), ("test", "validation")):
    first, last = session.splits[split]
    found = hits(x.at[first:last].set(99.0))
    np.testing.assert_array_equal(found[other], before[other])
  padding = hits(x.at[2, 30 - 2 * 13 :].set(99.0))
  jax.tree.map(np.testing.assert_array_equal, padding, before)
  assert (hits(x.at[0, 0].set(99.0))["test"] != before["test"]).any()


def test_the_width_of_inputs_is_data():
  session, found = trained("dnn")
  compressing.grid(ranked("dnn"), found.pack, narrow_cells((8,)))
  programs = len(session.programs)
  compressing.grid(ranked("dnn"), found.pack, narrow_cells((7, 2)))
  assert len(session.programs) == programs


# --- retraining --------------------------------------------------------------


def retrained(family, variants):
  """Each variant's outcome and parameters [S, ...] in the parent's shapes."""
  pack, states, run = trained(family)[1].pack, [], packs.train_epochs

  def spy(*arguments, **options):
    result = run(*arguments, **options)
    states.append(jax.device_get(result[0].params))
    return result

  with mock.patch.object(packs, "train_epochs", spy):
    outcome = compressing.retrain(ranked(family), pack, variants, SETTINGS)
  trees = [
    jax.tree.map(lambda leaf, i=i: leaf[: len(SEEDS), i], state)
    for state in states
    for i in range(pack.slots)
  ]
  members = [variant.member for variant in variants]
  return of_members(family, outcome, members), trees


def test_retraining_unpruned_is_training_on():
  session, found = trained("dnn")
  config, train = session.config, dataset().train
  parent = found.pack.parent.spec(SHAPE, CLASSES)
  _, trees = retrained("dnn", [compressing.Variant(m, 0, 0.0) for m in (0, 1)])
  for member, a in enumerate(found.pack.architectures):
    tx = training.make_tx(config)
    step = jax.jit(training.make_step(ma.make_model(a, SHAPE, CLASSES), tx))
    inside = models.unpad(trees[member], a.spec(SHAPE, CLASSES), parent)
    for j, seed in enumerate(SEEDS):
      params = jax.tree.map(lambda leaf, j=j: leaf[j], found.params[member])
      state = training.TrainState(params, tx.init(params))
      masks = jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), params)
      for epoch in range(6, 8):
        for indices in training.data_order(seed, epoch, 52, 8):
          batch = Batch(train.x[indices], train.y[indices])
          state, _ = step(state, batch, np.float32(0.01), None, masks)
      jax.tree.map(
        lambda x, y, j=j: np.testing.assert_allclose(
          x[j], y, rtol=1e-3, atol=1e-4
        ),
        inside,
        state.params,
      )


@pytest.mark.parametrize("family", CASES)
def test_retraining_keeps_what_was_pruned_zero_and_moves_the_rest(family):
  _, found = trained(family)
  rule = len(rules_of(family)) - 1
  # More than the pack has slots where two members are compared.
  pairs = [(m, s) for m in COMPARED[family] for s in (0.3, 0.8)]
  variants = [compressing.Variant(m, rule, s) for m, s in pairs]
  outcomes, trees = retrained(family, variants)
  parent = found.pack.parent.spec(SHAPE, CLASSES)
  for i, (member, s) in enumerate(pairs):
    spec = found.pack.architectures[member].spec(SHAPE, CLASSES)
    before = pruner(family, member)(found.params[member], s)[rule]
    before = jax.device_get(before)
    inside = models.unpad(trees[i], spec, parent)
    moved = []
    for path, start in models.flatten(before).items():
      after, kept = models.flatten(inside)[path], np.asarray(start) != 0
      if path[-1] in ("kernel", "embedding"):
        assert not after[~kept].any(), path
      moved.append((after != start)[kept].mean())
    assert np.nanmax(moved) > 0.9
    # What is scored is the retrained network, rounded.
    for cell, alone in enumerate(scorer(family, member)(inside)):
      for part, expected in zip(outcomes[i], alone, strict=True):
        np.testing.assert_array_equal(part[:, cell], expected)
