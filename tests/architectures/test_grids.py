"""Grids: what they enumerate, and what of it fits the images."""

import itertools

import pytest

from minarch_jax import architectures
from minarch_jax.architectures import Problem
from tests.architectures.members import GRIDS, SHAPES


def test_paper_enumerates_every_monotone_dnn():
  members = architectures.grid("paper", "dnn", (28, 28, 1), 10)
  widths = (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 500, 1000)
  expected = {
    chosen
    for depth in range(1, 5)
    for chosen in itertools.product(widths, repeat=depth)
    if len(set(chosen)) == 1
    or list(chosen) == sorted(set(chosen))
    or list(chosen) == sorted(set(chosen), reverse=True)
  }
  assert {a.widths for a in members} == expected
  by_depth = [sum(a.depth == d for a in members) for d in range(1, 5)]
  assert by_depth == [12, 144, 452, 1002]
  assert len(members) == 1610


def test_paper_has_one_to_32_channels_and_two_patches():
  cnn = architectures.grid("paper", "cnn", (28, 28, 1), 10)
  assert [a.widths for a in cnn] == [(c,) for c in range(1, 33)]
  patches = {(8, 8, 1): {2, 4}, (28, 28, 1): {4, 7}, (32, 32, 3): {4, 8}}
  for shape, expected in patches.items():
    vit = architectures.grid("paper", "vit", shape, 10)
    assert {a.options[0] for a in vit} == expected
    assert {a.depth for a in vit} == set(range(1, 7))
    assert {a.widths[0] for a in vit} == {4, 8, 16, 32, 64, 128}


def test_square_members_have_equal_layers():
  for family in ("dnn", "cnn"):
    members = architectures.grid("square", family, (28, 28, 1), 10)
    assert all(len(set(a.widths)) == 1 for a in members)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_small_spans_decades_and_depths(shape):
  spans = {"dnn": 400, "cnn": 40, "vit": 300}  # cnn kernels hardly grow
  for family in architectures.FAMILIES:
    members = architectures.grid("small", family, shape, 10)
    params = [a.num_params(shape, 10) for a in members]
    assert len(members) == 12
    assert max(params) / min(params) > spans[family]
    depths = [a.depth for a in members]
    assert min(depths.count(depth) for depth in set(depths)) >= 2
    assert len(set(depths)) >= 2


@pytest.mark.parametrize("name, family", GRIDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_members_are_distinct_and_fit(name, family, shape):
  members = architectures.grid(name, family, shape, 10)
  assert members and len(set(members)) == len(members)
  assert {a.family for a in members} == {family}


def test_a_grid_leaves_out_what_does_not_fit():
  members = architectures.grid("square", "cnn", (3, 3, 1), 10)
  assert {a.depth for a in members} == {1, 2}


def test_named_architectures_replace_the_grid_once_each_in_order():
  chosen = architectures.select(
    ["cnn:4", "dnn:2", "cnn:4"], "small", ["vit"], Problem((8, 8, 1), 10)
  )
  assert [str(a) for a in chosen] == ["cnn:4", "dnn:2"]


def test_selecting_a_grid_joins_its_families():
  chosen = architectures.select(
    [], "tiny", ["cnn", "dnn"], Problem((8, 8, 1), 10)
  )
  assert chosen == [
    *architectures.grid("tiny", "cnn", (8, 8, 1), 10),
    *architectures.grid("tiny", "dnn", (8, 8, 1), 10),
  ]


@pytest.mark.parametrize(
  "name, family, near",
  [("papr", "dnn", "did you mean 'paper'"), ("tiny", "cmn", "mean 'cnn'")],
)
def test_unknown_grids_name_the_nearest(name, family, near):
  with pytest.raises(ValueError, match=near):
    architectures.grid(name, family, (8, 8, 1), 10)
