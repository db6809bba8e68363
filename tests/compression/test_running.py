"""Packs compressed: a grid's cell is what the public functions give.

A cell of the grid is prune, mask, quantize, dequantize and score of the network
alone; retraining keeps the masks and, without pruning, is plain training.
"""

import dataclasses
import functools
import itertools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import minarch_jax as ma
from minarch_jax import models, quantization, random
from minarch_jax.architectures import Architecture, Problem
from minarch_jax.compression import grid as grids
from minarch_jax.compression import oneshot, retraining, running, scoring
from minarch_jax.compression.grid import Cell, Precision, Retraining
from minarch_jax.compression.programs import Outcome
from minarch_jax.config import Config
from minarch_jax.engine import evaluation, packs, training
from minarch_jax.engine import session as sessions
from minarch_jax.engine.planning import Pack
from minarch_jax.quantization import Rounding
from minarch_jax.registries import METHODS, MOVES, QUANTIZERS, RETRAINING
from minarch_jax.stages import rows as make_rows
from minarch_jax.types import Batch, record_inputs
from tests import made_up
from tests.made_up import CLASSES, SHAPE

SEEDS = (4, 0)
SPARSITIES = (0.0, 0.3, 0.8)
# Members compared with networks alone, each of which is compiled.
COMPARED = {"dnn": (0, 1), "cnn": (1,), "vit": (1,)}
CHANNEL, TENSOR = Rounding("int", "channel"), Rounding("int", "tensor")
PRECISIONS = [Precision(bits, CHANNEL) for bits in (32, 8, 4)]
PRECISIONS += [Precision(4, TENSOR)]

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
  pack = Pack(members, SEEDS, Architecture.parse(parent), 3)
  session = sessions.open_session(config_of(family), dataset())
  return session, packs.train(session, pack)


def rules_of(family):
  return grids.rules_of(trained(family)[0].config)


def cells_of(family):
  return [
    Cell(rule, sparsity, precision)
    for rule in rules_of(family)
    for sparsity in SPARSITIES
    for precision in PRECISIONS
  ]


@functools.cache
def ranked(family):
  session, found = trained(family)
  return scoring.rank(*(session, found.pack, found.params, rules_of(family)))


def scores_of(family, cells):
  return oneshot.score_cells(ranked(family), trained(family)[1].pack, cells)


@functools.cache
def graded(family):
  return scores_of(family, cells_of(family))


def of_members(family, outcome, members=(0, 1)):
  """The outcome of each slot, with the leaves that its member has."""
  pack = trained(family)[1].pack
  parent = pack.parent.spec(Problem(SHAPE, CLASSES))
  return [
    scoring.of_member(
      outcome, i, pack.architectures[m].spec(Problem(SHAPE, CLASSES)), parent
    )
    for i, m in enumerate(members)
  ]


# --- one network by the public functions -------------------------------------


@functools.cache
def pruner(family, member):
  """prune(params, seed, sparsity) -> the masked tree for each rule."""
  architecture = trained(family)[1].pack.architectures[member]
  spec = architecture.spec(Problem(SHAPE, CLASSES))
  model = ma.make_model(architecture, Problem(SHAPE, CLASSES))
  batch = dataset().train

  def loss(params, batch):
    logits = model.apply(params, batch.x)
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, batch.y
    ).mean()

  def prune(params, seed, sparsity):
    context = {
      "key": random.key_for(seed, random.Purpose.PRUNE),
      "loss": loss,
      "batch": batch,
      "activations": record_inputs(model.apply, params, batch.x)[1],
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
  spec = architecture.spec(Problem(SHAPE, CLASSES))
  model = ma.make_model(architecture, Problem(SHAPE, CLASSES))

  def score(params):
    flat = models.flatten(params)
    counts = [jnp.count_nonzero(flat[leaf.path]) for leaf in spec.leaves]
    validation, test = right_of(model.apply, params)
    bits = jnp.packbits(validation)
    return Outcome(validation.sum(), test.sum(), bits, jnp.stack(counts))

  return score


def right_of(apply, params, **hooks):
  """Which validation and which test images one network answers right."""
  splits = dataset().validation, dataset().test
  batch = jax.tree.map(lambda *parts: np.concatenate(parts), *splits)
  _, right = evaluation.losses(apply(params, batch.x, **hooks), batch.y)
  count = len(splits[0].y)
  return right[:count], right[count:]


def hits_of(*arguments, **hooks):
  """Right answers of one network on the validation and on the test images."""
  return tuple(right.sum() for right in right_of(*arguments, **hooks))


def in_turn(score, trees):
  """Scores trees of one structure by one function, compiled once."""
  return jax.lax.map(
    score, jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
  )


def each_of(outcomes):
  """Splits what was scored in turn: outcomes [S, ...] of each tree."""
  parts = [np.moveaxis(np.asarray(part), 1, 0) for part in outcomes]
  return list(itertools.starmap(Outcome, zip(*parts, strict=True)))


@functools.cache
def scorer(family, member):
  """outcomes(params) -> the Outcome [S, ...] at each of PRECISIONS."""
  score = scored(trained(family)[1].pack.architectures[member])

  def outcomes(params):
    trees = [
      ma.dequantize(ma.quantize(params, bits, rounding.granularity))
      for bits, rounding, _ in PRECISIONS
    ]
    return in_turn(score, trees)

  mapped = jax.jit(jax.vmap(outcomes))
  return lambda params: each_of(mapped(params))


@pytest.mark.parametrize("family", CASES)
def test_a_cell_is_what_the_public_functions_give(family):
  _, found = trained(family)
  outcomes = of_members(family, graded(family))
  for i in COMPARED[family]:
    outcome = outcomes[i]
    cells = iter(range(outcome.test.shape[1]))
    pruned = {s: pruner(family, i)(found.params[i], s) for s in SPARSITIES}
    for r, s in itertools.product(range(len(rules_of(family))), pruned):
      for alone in scorer(family, i)(pruned[s][r]):
        cell = next(cells)
        for part, expected in zip(outcome, alone, strict=True):
          np.testing.assert_array_equal(part[:, cell], expected, f"{r} {s}")


def test_criteria_look_at_training_images_only():
  config = config_of("dnn").replace(criteria=("snip",), scopes=("global",))
  session = sessions.open_session(config, dataset(30))  # three chunks of 13
  pack, params = trained("dnn")[1].pack, trained("dnn")[1].params
  _, last = session.splits["train"]
  others = session.data._replace(x=session.data.x.at[last:].set(9.0))
  rules = grids.rules_of(config)
  places = [
    scoring.rank(each, pack, params, rules).places
    for each in (session, dataclasses.replace(session, data=others))
  ]
  for rule in rules:
    jax.tree.map(np.testing.assert_array_equal, *(p[rule] for p in places))


@pytest.mark.parametrize("family", CASES)
def test_dense_in_32_bits_is_the_trained_network(family):
  cells, scores = cells_of(family), trained(family)[1].scores
  neutral = [cell.sparsity == 0 and cell.precision.bits == 32 for cell in cells]
  assert sum(neutral) == len(rules_of(family))
  for split in ("validation", "test"):
    hits = getattr(graded(family), split)[..., neutral]
    expected = getattr(scores, split).correct[..., None]
    np.testing.assert_array_equal(hits, np.broadcast_to(expected, hits.shape))


def test_a_grid_is_its_cells_in_any_order():
  session, _ = trained("dnn")
  whole, cells = graded("dnn"), cells_of("dnn")
  order = np.random.default_rng(0).permutation(len(cells))[:12]
  programs = len(session.programs)
  outcome = scores_of("dnn", [cells[i] for i in order])
  for part, expected in zip(outcome, whole, strict=True):
    np.testing.assert_array_equal(part, expected[:, :, order])
  # Rules, sparsities and bits are data: no cell costs a compilation.
  assert len(session.programs) == programs


def test_a_diverged_network_is_compressed_as_data():
  session, found = trained("dnn")
  params = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), found.params)
  cells = [*cells_of("dnn"), *narrow_cells("dnn", (8,))]
  outcome, *_ = running.compress(session, found.pack, params, cells, [], [])
  assert not outcome.validation.any() and not outcome.test.any()


# --- other quantizers --------------------------------------------------------


def form_of(row):
  """What a row says in the words of `quantize`: bits, granularity, calibration.

  It may name a calibration of integers or a format, which has its own.
  """
  name, granularity = row["quantizer"], row["quant_granularity"]
  if name in METHODS:
    return row["bits"], granularity, name
  granularity = "channel" if granularity == "none" else granularity
  if name in quantization.FORMATS:
    return name, granularity, None
  return row["bits"], granularity, None if name == "none" else name


def test_a_row_of_a_quantizer_is_what_the_public_functions_give():
  session, found = trained("dnn")
  pack, member = found.pack, 1  # narrower and shallower than its parent
  # The same programs serve the other configuration.
  session = session.with_config(quantizers=tuple(QUANTIZERS), bits=(32, 4))
  cells = grids.cells_of(session.config, prune=False, quantize=True)
  outcome = running.compress(session, pack, found.params, cells, [], [])
  rows = make_rows.oneshot(session, "run", pack, outcome, cells)[member]
  assert set(rows["quantizer"]) == {"none", *QUANTIZERS}
  rows = [rows.filter(seed=seed).to_dicts() for seed in SEEDS]
  forms = list(map(form_of, rows[0]))
  architecture = pack.architectures[member]
  score = scored(architecture)
  apply = ma.make_model(architecture, Problem(SHAPE, CLASSES)).apply

  def rounded(params, bits, granularity, how):
    if how in METHODS:
      return METHODS[how](apply, params, dataset().train.x, bits, granularity)
    return ma.quantize(params, bits, granularity, calibration=how)

  def alone(params):
    trees = [ma.dequantize(rounded(params, *form)) for form in forms]
    return in_turn(score, trees)

  expected = each_of(jax.jit(jax.vmap(alone))(found.params[member]))
  leaves = architecture.spec(Problem(SHAPE, CLASSES)).leaves
  one = jax.tree.map(lambda leaf: leaf[0], found.params[member])
  for i, (validation, test, _, nonzeros) in enumerate(expected):
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


# --- activations of few bits -------------------------------------------------

WIDTHS = (32, 8, 3)


def narrow_cells(family, widths):
  rule, *_ = rules_of(family)
  return [Cell(rule, 0.0, Precision(4, CHANNEL, width)) for width in widths]


@pytest.mark.parametrize("family", CASES)
def test_rounding_inputs_is_what_the_public_functions_give(family):
  _, found = trained(family)
  i = COMPARED[family][-1]
  model = ma.make_model(found.pack.architectures[i], Problem(SHAPE, CLASSES))

  def alone(params):
    params = ma.dequantize(ma.quantize(params, 4))
    ranges = quantization.calibrate(model.apply, params, dataset().train.x)
    taps = [quantization.make_tap(ranges, bits) for bits in WIDTHS]
    each = [hits_of(model.apply, params, tap=tap) for tap in taps]
    return list(zip(*each, strict=True))

  expected = jax.jit(jax.vmap(alone))(found.params[i])
  outcome = scores_of(family, narrow_cells(family, WIDTHS))
  for hits, each in zip(outcome[:2], expected, strict=True):
    # A sum in another order may round an input to the next code.
    np.testing.assert_allclose(hits[:, i], np.stack(each, -1), atol=1)
  assert np.ptp(outcome.test[:, i], -1).max() > 1


def test_ranges_come_from_training_images_only():
  config = config_of("dnn").replace(criteria=("magnitude",), scopes=("global",))
  session = sessions.open_session(config, dataset(30))  # three chunks of 13
  pack, params = trained("dnn")[1].pack, trained("dnn")[1].params
  x, cells = session.data.x, narrow_cells("dnn", (3,))

  def hits(x):
    changed = dataclasses.replace(session, data=session.data._replace(x=x))
    found, *_ = running.compress(changed, pack, params, cells, [], [])
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
  session, _ = trained("dnn")
  scores_of("dnn", narrow_cells("dnn", (8,)))
  programs = len(session.programs)
  scores_of("dnn", narrow_cells("dnn", (7, 2)))
  assert len(session.programs) == programs


# --- retraining --------------------------------------------------------------

# Rounds repeat what is tested of every family elsewhere, to rank and to train:
# how often and in whose company is asked of one family, with few programs. The
# scope is layer-wise: each layer keeps as many weights, however they are cut.


def retrained(family, retrainings):
  """Each one's outcome and parameters [S, ...] in the parent's shapes."""
  pack, states, run = trained(family)[1].pack, [], packs.train_epochs

  def spy(*arguments, **options):
    result = run(*arguments, **options)
    states.append(jax.device_get(result[0].params))
    return result

  with mock.patch.object(packs, "train_epochs", spy):
    outcome = retraining.retrain(ranked(family), pack, retrainings, PRECISIONS)
  trees = [
    jax.tree.map(lambda leaf, i=i: leaf[: len(SEEDS), i], state)
    for state in states
    for i in range(pack.slots)
  ]
  members = [pack.architectures.index(r.architecture) for r in retrainings]
  return of_members(family, outcome, members), trees


def test_retraining_unpruned_is_training_on():
  session, found = trained("dnn")
  config, train = session.config, dataset().train
  parent = found.pack.parent.spec(Problem(SHAPE, CLASSES))
  rule, *_ = rules_of("dnn")
  members = found.pack.architectures
  _, trees = retrained("dnn", [Retraining(a, rule, 0.0) for a in members])
  for member, a in enumerate(members):
    tx = training.make_tx(config)
    step = jax.jit(
      training.make_step(ma.make_model(a, Problem(SHAPE, CLASSES)), tx)
    )
    inside = models.unpad(
      trees[member], a.spec(Problem(SHAPE, CLASSES)), parent
    )
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
  *_, rule = rules_of(family)
  # More than the pack has slots where two members are compared.
  pairs = [(m, s) for m in COMPARED[family] for s in (0.3, 0.8)]
  members = found.pack.architectures
  outcomes, trees = retrained(
    family, [Retraining(members[m], rule, s) for m, s in pairs]
  )
  parent = found.pack.parent.spec(Problem(SHAPE, CLASSES))
  for i, (member, s) in enumerate(pairs):
    spec = members[member].spec(Problem(SHAPE, CLASSES))
    before = pruner(family, member)(found.params[member], s)[-1]
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


@pytest.mark.parametrize("name", RETRAINING)
def test_a_schedule_spends_the_steps_and_keeps_as_many_weights(name):
  session, found = trained("dnn")
  rule, a = layerwise(), found.pack.architectures[0]
  spent, run = [], packs.train_epochs

  def spy(placed, state, masks, rates, *splits, first_epoch, **options):
    spent.append((first_epoch, rates.size))
    return run(
      *(placed, state, masks, rates, *splits),
      first_epoch=first_epoch,
      **options,
    )

  def kept(schedule):
    spent.clear()
    wanted = [Retraining(a, rule, s, schedule) for s in (0.0, 0.3, 0.8)]
    with mock.patch.object(packs, "train_epochs", spy):
      outcome = retraining.retrain(
        ranked("dnn"), found.pack, wanted, PRECISIONS[:1]
      )
    return outcome.nonzeros[:, :, 0]

  expected = kept("finetune")
  ((_, steps),) = spent
  if name in MOVES:  # a connection that has grown may not have moved from 0
    assert (kept(name) <= expected).all()
  else:
    np.testing.assert_array_equal(kept(name), expected)
  assert sum(size for _, size in spent) == steps
  numbers = [first for first, _ in spent]
  assert numbers == sorted(set(numbers))  # no image order comes twice
  if name != "finetune":
    assert len(spent) >= session.config.retraining_rounds


@pytest.mark.parametrize("name", MOVES)
def test_connections_move_where_some_are_free(name):
  _, found = trained("dnn")
  rule, a = layerwise(), found.pack.architectures[0]
  cut = {}
  for schedule in ("finetune", name):
    wanted = [Retraining(a, rule, s, schedule) for s in (0.0, 0.8)]
    _, trees = retrained("dnn", wanted)
    cut[schedule] = trees[-found_slots("dnn") :]
  for i, moves in enumerate((False, True)):
    there = [
      np.asarray(models.flatten(cut[s][i])["hidden_0", "kernel"]) != 0
      for s in ("finetune", name)
    ]
    assert (there[0] != there[1]).any() == moves


def layerwise():
  _, rule, *_ = rules_of("dnn")
  assert (rule.criterion, rule.scope) == ("magnitude", "layerwise")
  return rule


def found_slots(family):
  return trained(family)[1].pack.slots


def test_retraining_in_rounds_does_not_depend_on_company():
  session, found = trained("dnn")
  rule, pack = layerwise(), found.pack
  for name in ("iterative", "rigl"):
    wanted = [Retraining(m, rule, 0.8, name) for m in pack.architectures]
    together = retraining.retrain(ranked("dnn"), pack, wanted, PRECISIONS[:1])
    for i, each in enumerate(wanted):
      alone = retraining.retrain(ranked("dnn"), pack, [each], PRECISIONS[:1])
      for part, expected in zip(together, alone, strict=True):
        np.testing.assert_array_equal(part[:, i], expected[:, 0])
