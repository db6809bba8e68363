"""Grids: what they enumerate, and what of it fits the images."""

import itertools

import pytest

from minarch_jax import architectures
from minarch_jax.architectures import ladder, Problem
from tests.architectures.members import GRIDS, SHAPES

WIDTHS = (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 500, 1000)


def test_paper_has_a_group_for_every_size_and_relations_of_neighbours():
  members = architectures.grid("paper", "dnn", (28, 28, 1), 10)
  groups = []
  for depth in range(1, 5):
    for place in range(12):
      for relations in itertools.product("=<>", repeat=depth - 1):
        places = [place]
        for relation in relations:
          step = {"=": 0, "<": 1, ">": -1}[relation]
          places.append(sorted((0, places[-1] + step, 11))[1])
        groups.append(tuple(WIDTHS[i] for i in places))
  by_depth = [sum(len(g) == d for g in groups) for d in range(1, 5)]
  assert by_depth == [12, 36, 108, 324] and len(groups) == 480
  assert {a.widths for a in members} == set(groups)
  assert len(members) == 428  # at the ends of the sizes groups coincide


def test_monotone_enumerates_every_monotone_dnn():
  members = architectures.grid("monotone", "dnn", (28, 28, 1), 10)
  widths = WIDTHS
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


LADDER_DEPTHS = {"dnn": (1, 2, 4), "cnn": (1, 2, 3), "vit": (1, 2, 4)}


@pytest.mark.parametrize(
  "shape", [(8, 8, 1), (28, 28, 1), (32, 32, 3)], ids=str
)
def test_a_ladder_crosses_family_and_depth_at_equal_sizes(shape):
  sizes = ladder.sizes(Problem(shape, 10))
  ratio = 4 if shape == (8, 8, 1) else 2
  assert sizes == [sizes[0] * ratio**step for step in range(4)]
  cells = {}
  for family, depths in LADDER_DEPTHS.items():
    for a in architectures.grid("ladder", family, shape, 10):
      params = a.num_params(shape, 10)
      (size,) = [s for s in sizes if abs(params / s - 1) <= ladder.TOLERANCE]
      assert (family, a.depth, size) not in cells and a.depth in depths
      cells[family, a.depth, size] = a
      if family == "vit":
        patch, dim = a.options[0], a.widths[0]
        assert (shape[0] // patch) * (shape[1] // patch) >= 16
        heads = a.widths[1]
        assert dim % heads == 0 and (heads == 1 or dim // heads >= 4)
  # Two convolutions of one channel are too small for the first of 28x28 images
  # and of two too large.
  missing = {
    (family, depth, size)
    for family, depths in LADDER_DEPTHS.items()
    for depth in depths
    for size in sizes
  } - cells.keys()
  assert missing == (set() if shape == (8, 8, 1) else {("cnn", 2, sizes[0])})
  named = [f"{f} of depth {d} at {size:,} parameters" for f, d, size in missing]
  assert ladder.gaps(Problem(shape, 10), cells.values()) == named


def test_members_of_a_ladder_are_as_near_as_the_nearest_of_their_kind():
  shape = (8, 8, 1)
  for size in ladder.sizes(Problem(shape, 10)):
    for family in ("dnn", "cnn"):
      (found,) = [
        a
        for a in architectures.grid("ladder", family, shape, 10)
        if a.depth == 2 and abs(a.num_params(shape, 10) / size - 1) <= 0.1
      ]
      error = abs(found.num_params(shape, 10) / size - 1)
      for one, other in itertools.product(range(1, 200), repeat=2):
        if one <= other <= one + 1 and error > ladder.EVEN:
          a = architectures.Architecture(family, (one, other))
          assert abs(a.num_params(shape, 10) / size - 1) >= error
