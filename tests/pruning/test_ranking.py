"""Laws of ranking and cutting, over the scopes and granularities."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minarch_jax import architectures, models, pruning, registries
from minarch_jax.architectures import Problem
from minarch_jax.pruning import scopes, selection

SHAPE, CLASSES = (4, 4, 1), 3
SPARSITIES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95)
CUTS = ("element", "nm:4", "block:2x3", "unit")
CASES = [("dnn:8-6", "global", cut) for cut in CUTS]
CASES += [("dnn:8-6", scope, "element") for scope in ("layerwise", "erk")]
CASES += [
  ("dnn:8-6", "layerwise", "unit"),
  ("dnn:8-6", "layerwise", "nm:4"),
  ("cnn:4-2", "erk", "element"),
  ("cnn:4-2", "global", "unit"),
  ("vit:p2-d4-l1-h2", "global", "unit"),
  ("vit:p2-d4-l1-h2", "global", "nm:4"),
]
PARENTS = {
  "dnn:8-6": "dnn:12-8",
  "cnn:4-2": "cnn:8-3",
  "vit:p2-d4-l1-h2": "vit:p2-d8-l1-h4-m12",
}
# Layers whose kernels do not have four neighbours among their inputs.
NARROW = {"dnn": ("output",), "cnn": ("conv_0", "output"), "vit": ("block_0",)}


def spec_of(text):
  architecture = architectures.Architecture.parse(text)
  return architecture.spec(Problem(SHAPE, CLASSES))


@functools.cache
def params_of(text, seed=0):
  architecture = architectures.Architecture.parse(text)
  model = models.make_model(architecture, Problem(SHAPE, CLASSES))
  return jax.device_get(jax.jit(model.init)(jax.random.key(seed)))


def all_true(tree):
  return jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), tree)


@functools.cache
def program(text, scope, cut, shapes):
  """(scores, within, masks) -> (ranking, masks at every sparsity).

  One program for a case, alone or in a parent, so that a case costs two
  compilations; `shapes` is the architecture whose shapes the leaves have.
  """
  exclude = NARROW[text[:3]] if cut.startswith("nm") else ()

  def function(scores, within, masks):
    ranking = pruning.rank(
      *(scores, scope, within),
      masks=masks,
      granularity=cut,
      exclude=exclude,
      spec=spec_of(shapes),
    )
    sparsities = jnp.array(SPARSITIES, jnp.float32)
    at = jax.vmap(pruning.masks_at, (None, 0))
    return ranking, at(ranking, sparsities)

  options = {"xla_backend_optimization_level": 0}  # compiles twice as fast
  return jax.jit(function, compiler_options=options)


def scores_of(text, tied):
  return jax.tree.map(np.ones_like if tied else np.abs, params_of(text))


@functools.cache
def grid(text, scope, cut, tied):
  """The plan, and host masks [len(SPARSITIES), ...] of every leaf."""
  scores = scores_of(text, tied)
  every = all_true(scores)
  ranking, masks = jax.device_get(
    program(text, scope, cut, text)(scores, every, every)
  )
  return ranking.plan, masks


@functools.partial(jax.jit, static_argnums=0)
def alive(plan, leaves):
  """Marks of the groups that are there, for each layer."""
  found = []
  for layer in plan.layers:
    if layer.args or len(layer.members) == 1:
      found.append(plan.granularity.group(layer, leaves, leaves, "mean")[1])
    else:  # a unit's kernels may be empty because its neighbours are gone
      bias = min(layer.members[:2], key=lambda member: len(member.shape))
      units = jnp.moveaxis(leaves[bias.leaf], bias.axis, 0)
      found.append(units.reshape(len(units), -1).any(1))
  return found


def pools(plan, masks):
  """(kept, existing) groups of each pool, counted on the masks alone."""
  layers = jax.device_get(alive(plan, jax.tree.leaves(masks)))
  if plan.granularity.rows:
    return [(int(row.sum()), row.size) for keep in layers for row in keep]
  if plan.scope.pooled:
    return [(sum(int(k.sum()) for k in layers), sum(k.size for k in layers))]
  return [(int(k.sum()), k.size) for k in layers]


every_case = pytest.mark.parametrize("text, scope, cut", CASES)
with_ties = pytest.mark.parametrize("tied", [False, True])


@every_case
@with_ties
def test_counts_are_exact(text, scope, cut, tied):
  plan, masks = grid(text, scope, cut, tied)
  for i, sparsity in enumerate(SPARSITIES):
    at = jax.tree.map(lambda leaf, i=i: leaf[i], masks)
    counts = pools(plan, at)
    if scope == "erk":
      total = sum(size for _, size in counts)
      expected = max(round((1 - sparsity) * total), len(counts))
      assert sum(kept for kept, _ in counts) == expected
    # Of a traced sparsity it cannot be said that it leaves none of every M.
    least = 1 if scope != "global" or plan.granularity.rows else 0
    for kept, size in counts:
      assert kept >= least
      if scope != "erk":
        assert kept == max(round((1 - sparsity) * size), least)


@every_case
@with_ties
def test_sparser_masks_lie_inside_denser_ones(text, scope, cut, tied):
  _, masks = grid(text, scope, cut, tied)
  for leaf in jax.tree.leaves(masks):
    assert np.all(leaf[1:] <= leaf[:-1])


@every_case
def test_sparsity_zero_is_the_identity(text, scope, cut):
  _, masks = grid(text, scope, cut, False)
  assert all(leaf[0].all() for leaf in jax.tree.leaves(masks))


@every_case
def test_what_is_pruned_stays_pruned(text, scope, cut):
  _, masks = grid(text, scope, cut, False)
  level = 4
  before = jax.tree.map(
    lambda leaf, p: np.broadcast_to(
      leaf[level].reshape(leaf.shape[1:]), p.shape
    ),
    masks,
    params_of(text),
  )
  scores = scores_of(text, False)
  _, again = program(text, scope, cut, text)(scores, all_true(scores), before)

  def compare(after, first, before):
    # Idempotent, a lower sparsity brings nothing back, a higher one goes on.
    for i, sparsity in enumerate(SPARSITIES):
      expected = before if sparsity <= SPARSITIES[level] else first[i]
      np.testing.assert_array_equal(
        np.broadcast_to(after[i], expected.shape), expected
      )

  jax.tree.map(compare, jax.device_get(again), masks, before)


@every_case
@with_ties
def test_a_network_in_a_parent_is_pruned_as_alone(text, scope, cut, tied):
  spec, parent = spec_of(text), spec_of(PARENTS[text])
  _, alone = grid(text, scope, cut, tied)
  scores = scores_of(text, tied)
  sizes = {axis: spec.sizes[axis] for axis in spec.unit_axes}
  within = jax.device_get(jax.jit(lambda: models.width_masks(parent, sizes))())
  wide = jax.tree.map(
    # What does not exist must not matter, however important it looks.
    lambda s, w: np.where(w, s, 7.0).astype(np.float32),
    models.pad(scores, spec, parent),
    within,
  )
  _, masks = program(text, scope, cut, PARENTS[text])(
    wide, within, all_true(wide)
  )

  def compare(mask, exists, expected):
    lead = tuple(slice(size) for size in expected.shape)
    np.testing.assert_array_equal(mask[lead], expected)
    assert not np.any(mask & ~exists)

  jax.tree.map(compare, jax.device_get(masks), within, alone)


@pytest.mark.parametrize("whole", [True, False], ids=["scope", "function"])
def test_a_scope_is_its_registry_line(whole):
  """Re-registered under its name, it does not find the old one's program."""
  params = {n: {"kernel": np.arange(8.0)} for n in ("a", "b")}
  for kept in (1, 3):

    def same(sizes, density, sparsity, kept=kept):
      return jnp.full_like(sizes, kept)

    entry = scopes.Scope(same) if whole else same
    with mock.patch.dict(registries.SCOPES, same=entry):
      masks = pruning.prune(params, 0.5, scope="same")
    counts = [int(masks[name]["kernel"].sum()) for name in params]
    assert counts == [kept, kept]


def test_eager_traced_and_mapped_agree():
  trees = [params_of("dnn:8-6", seed) for seed in range(2)]
  eager = [pruning.prune(tree, 0.7) for tree in trees]
  stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
  static = jax.jit(jax.vmap(lambda p: pruning.prune(p, 0.7)))
  traced = jax.jit(jax.vmap(pruning.prune, (0, None)))
  for together in (static(stacked), traced(stacked, np.float32(0.7))):
    for i, masks in enumerate(eager):
      jax.tree.map(
        lambda a, b, i=i: np.testing.assert_array_equal(a, b[i]),
        *(masks, together),
      )


def test_counting_is_that_of_python_floats():
  sizes = np.arange(1200)
  sizes = np.append(sizes, [8_191, 99_999, 266_200, 4_000_000, 67_108_863])
  percent = np.arange(100)
  expected = [[round((1 - s) * int(n)) for n in sizes] for s in percent / 100]
  count = jax.jit(jax.vmap(pruning.kept_count, (0, None)))
  traced = count((percent / 100).astype(np.float32), sizes.astype(np.int32))
  np.testing.assert_array_equal(traced, expected)
  # A Python float is taken as it is, also beyond six decimals.
  for sparsity in (1 - 0.8**10, 1 - 0.8**20, 1 / 3, 1e-9, 0.29):
    static = jax.jit(functools.partial(pruning.kept_count, sparsity))
    expected = [round((1 - sparsity) * int(n)) for n in sizes]
    np.testing.assert_array_equal(static(sizes.astype(np.int32)), expected)
    np.testing.assert_array_equal(static(sizes[3]), expected[3])
    known = pruning.kept_count(sparsity, sizes)
    np.testing.assert_array_equal(known, expected)


def test_selection_is_that_of_a_stable_sort():
  draw = np.random.default_rng(0)
  scores = draw.integers(-3, 3, (6, 50)).astype(np.float32)
  scores[0, :3] = [np.nan, -np.inf, np.inf]
  scores[1, :5] = -0.0
  for kept in range(0, 51, 5):
    masks = jax.vmap(lambda row, n: selection.best(row, True, n), (0, None))(
      scores, np.int32(kept)
    )
    order = np.argsort(np.nan_to_num(scores, nan=-np.inf), 1, kind="stable")
    expected = np.zeros(scores.shape, bool)
    np.put_along_axis(expected, order[:, 50 - kept :], True, 1)
    np.testing.assert_array_equal(masks, expected)


@pytest.mark.parametrize("kind", ["one", "arrays", "rows"])
def test_numpy_selects_what_programs_do(kind):
  """With ties, entries that are gone, and padding."""
  rng = np.random.default_rng(0)
  width = 4 if kind == "rows" else 8
  sizes = (24, 8) if kind == "rows" else (21, 5, 16)
  pools = selection.Pools(sizes, width, kind)
  scores = [rng.integers(-2, 3, n).astype(np.float32) for n in sizes]
  scores[0][:3] = [np.nan, -np.inf, -0.0]
  alive = [rng.random(n) < 0.8 for n in sizes]

  def keys(scores):
    table = selection.lay_out(pools, scores), selection.lay_out(pools, alive)
    return selection.sort_keys(*table)

  program = jax.jit(
    lambda s, kept: selection.keep_largest(keys(s), kept, pools)
  )
  count = {"one": 1, "arrays": 3, "rows": 8}[kind]
  for kept in range(0, 5 if kind == "rows" else 22):
    kept = np.full(count, kept, np.int32)
    table = keys(scores)
    found = selection.keep_largest(table, kept, pools)
    assert isinstance(table, np.ndarray) and isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, program(scores, kept))
