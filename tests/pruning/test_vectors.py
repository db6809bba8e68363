"""Vectors: what is ranked on the host is what compiled programs rank."""

import functools
from unittest import mock

import jax
import numpy as np
import pytest

from minarch_jax import models, pruning, registries
from minarch_jax.architectures import Architecture, Problem
from minarch_jax.architectures import vectors as shapes
from minarch_jax.pruning import criteria, scopes, vectors

PROBLEM = Problem((4, 4, 1), 3)
SPARSITIES = (0.0, 0.1, 0.3, 0.5, 0.7)
CASES = [
  ("dnn:8-4", "global", "element"),
  ("dnn:8-4", "erk", "element"),
  ("dnn:8-4", "layerwise", "nm:4"),
  ("dnn:8-4", "global", "unit"),
  ("cnn:4-2", "layerwise", "element"),
  ("cnn:4-2", "global", "block:2x3"),
  ("cnn:4-2", "layerwise", "unit"),
  ("vit:p2-d4-l2-h2", "global", "element"),
  ("vit:p2-d4-l2-h2", "erk", "block:2x3"),
  ("vit:p2-d4-l2-h2", "global", "unit"),
]


def parse(text):
  return Architecture.parse(text)


@functools.cache
def stacked(text, seeds=3):
  """Weights of a few networks, some of them equal, one that has diverged."""
  model = models.make_model(parse(text), PROBLEM)
  keys = jax.random.split(jax.random.key(0), seeds)
  params = jax.device_get(jax.jit(jax.vmap(model.init))(keys))
  vector = shapes.vector_of(parse(text), PROBLEM)
  values = vector.of(params)
  values[1] = np.round(values[1] * 8) / 8  # ties, and sums that are exact
  values[2, ::5] = np.nan
  return vector, values


@functools.cache
def program(text, scope, cut, pool):
  spec = parse(text).spec(PROBLEM)

  def function(scores, masks):
    return pruning.rank(
      *(scores, scope), masks=masks, granularity=cut, spec=spec, pool=pool
    )

  def every(scores, masks):
    ranking = function(scores, masks)
    return [pruning.masks_at(ranking, sparsity) for sparsity in SPARSITIES]

  options = {"xla_backend_optimization_level": 0}
  return jax.jit(jax.vmap(every), compiler_options=options)


def weights(vector):
  """Marks the entries of leaves that are pruned."""
  marks = np.zeros(vector.size, bool)
  for path, own in vector.slices.items():
    marks[own] = registries.is_weight(path)
  return marks


def filled(mask, leaf):
  """A mask of its leaf's shape; scalars say that nothing is pruned."""
  missing = (1,) * (leaf.ndim - np.ndim(mask))
  return np.broadcast_to(np.reshape(mask, np.shape(mask) + missing), leaf.shape)


@pytest.mark.parametrize("text, scope, cut", CASES)
def test_masks_are_those_of_the_compiled_ranking(text, scope, cut):
  vector, values = stacked(text)
  groups = vectors.groups_of(parse(text), PROBLEM, scope, cut)
  some = np.random.default_rng(0).random(values.shape) < 0.8
  for masks in (np.ones(values.shape, bool), some | ~weights(vector)):
    scores = np.where(masks, abs(values), 0).astype(np.float32)
    places = groups.rank(scores, masks, "mean")
    expected = program(text, scope, cut, "mean")(
      vector.tree(scores), vector.tree(masks)
    )
    for sparsity, tree in zip(SPARSITIES, expected, strict=True):
      found = groups.masks(groups.marks(places, sparsity)) & masks
      tree = jax.tree.map(filled, jax.device_get(tree), vector.tree(values))
      np.testing.assert_array_equal(found, vector.of(tree), f"{sparsity}")


@pytest.mark.parametrize("pool", ["sum", "absolute", "first"])
@pytest.mark.parametrize("cut", ["unit", "block:2x3"])
def test_groups_are_scored_by_their_pool(cut, pool):
  vector, values = stacked("cnn:4-2")
  groups = vectors.groups_of(parse("cnn:4-2"), PROBLEM, "global", cut)
  masks = np.ones(values.shape, bool)
  places = groups.rank(values, masks, pool)
  expected = program("cnn:4-2", "global", cut, pool)(
    vector.tree(values), vector.tree(masks)
  )
  for sparsity, tree in zip(SPARSITIES, expected, strict=True):
    found = groups.masks(groups.marks(places, sparsity))
    tree = jax.tree.map(filled, jax.device_get(tree), vector.tree(values))
    np.testing.assert_array_equal(found, vector.of(tree), f"{sparsity}")


def test_a_scope_is_what_is_registered_under_its_name():
  architecture = parse("dnn:8-4")
  for kept in (1, 3):

    def same(sizes, density, sparsity, kept=kept):
      return np.full_like(sizes, kept)

    with mock.patch.dict(registries.SCOPES, same=scopes.Scope(same)):
      groups = vectors.groups_of(architecture, PROBLEM, "same", "element")
      places = groups.rank(*np.ones((2, 1, 207), np.float32), "mean")
      marks = groups.marks(places, 0.5)
    assert marks.sum() == kept * len(groups.layers)


def test_what_leaves_none_of_every_m_is_refused():
  groups = vectors.groups_of(parse("dnn:8-4"), PROBLEM, "global", "nm:4")
  places = np.zeros((1, len(groups.pools)), np.int32)
  with pytest.raises(ValueError, match="0 of every 4"):
    groups.marks(places, 0.9)


OF_ENTRIES = [n for n in registries.CRITERIA if criteria.find(n).entry]


@pytest.mark.parametrize("name", OF_ENTRIES)
def test_a_criterion_of_entries_scores_as_it_does_trees(name):
  criterion = criteria.find(name)
  vector, values = stacked("cnn:4-2")
  key = jax.random.key(3)
  tree = criterion.score(pruning.Context(vector.tree(values[0]), key=key))
  draws = criteria.find("random").score(
    pruning.Context(vector.tree(values[0]), key=key)
  )
  np.testing.assert_array_equal(
    criterion.entry(values[0], vector.of(draws)), vector.of(tree)
  )


def test_shuffling_is_that_of_trees():
  vector, values = stacked("cnn:4-2")
  masks = (values > 0) | ~weights(vector)
  key = jax.random.key(5)
  random = criteria.find("random").score(
    pruning.Context(vector.tree(values[0]), key=key)
  )
  draws = np.tile(vector.of(random), (len(masks), 1))
  found = vectors.shuffled(masks, draws, vector)
  for mask, own in zip(masks, found, strict=True):
    expected = pruning.shuffled(vector.tree(mask), key)
    np.testing.assert_array_equal(own, vector.of(expected))
    assert (own != mask).any()
