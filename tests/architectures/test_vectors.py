"""Vectors: leaves in the order of trees, members inside their parents."""

import jax
import numpy as np
import pytest

from minarch_jax import models
from minarch_jax.architectures import Architecture, parent, Problem, vectors

PROBLEM = Problem((4, 4, 1), 3)
PAIRS = {
  "dnn": ("dnn:3-5-2", "dnn:7"),
  "cnn": ("cnn:2-4", "cnn:3-2"),
  "vit": ("vit:p2-d6-l1-h3-k1-m5", "vit:p2-d4-l2-h2"),
}


@pytest.mark.parametrize("family", PAIRS)
def test_a_vector_is_the_leaves_in_the_order_of_the_tree(family):
  for text in PAIRS[family]:
    architecture = Architecture.parse(text)
    vector = vectors.vector_of(architecture, PROBLEM)
    assert vector.size == architecture.spec(PROBLEM).num_params
    values = np.arange(2 * vector.size).reshape(2, -1)
    tree = vector.tree(values)
    leaves = [leaf.reshape(2, -1) for leaf in jax.tree.leaves(tree)]
    np.testing.assert_array_equal(np.concatenate(leaves, 1), values)
    np.testing.assert_array_equal(vector.of(tree), values)
    shapes = {leaf.path: leaf for leaf in vector.spec.leaves}
    for path, leaf in models.flatten(tree).items():
      assert leaf.shape == (2, *vector.spec.shape(shapes[path]))


@pytest.mark.parametrize("family", PAIRS)
def test_a_member_stands_where_padding_puts_it(family):
  members = list(map(Architecture.parse, PAIRS[family]))
  wide = parent(members)
  outer = vectors.vector_of(wide, PROBLEM)
  for member in members:
    own = vectors.vector_of(member, PROBLEM)
    values = np.arange(1.0, own.size + 1)
    padded = models.pad(own.tree(values), own.spec, outer.spec)
    found = np.zeros(outer.size)
    found[vectors.inside(member, wide, PROBLEM)] = values
    np.testing.assert_array_equal(found, outer.of(padded))


@pytest.mark.parametrize("family", PAIRS)
def test_counts_are_those_of_the_leaves_of_the_spec(family):
  vector = vectors.vector_of(Architecture.parse(PAIRS[family][0]), PROBLEM)
  marks = np.random.default_rng(0).random((3, vector.size)) < 0.4
  flat = models.flatten(vector.tree(marks))
  expected = [
    flat[leaf.path].reshape(3, -1).sum(1) for leaf in vector.spec.leaves
  ]
  np.testing.assert_array_equal(vector.counts(marks).T, expected)
