"""Architectures: text round trips, exact counts, grids, parents."""

import dataclasses
import itertools
import math
import random

import pytest

from minarch_jax import architectures
from minarch_jax.architectures import Architecture, Problem

SHAPES = [(8, 8, 1), (28, 28, 1), (32, 32, 3)]
GRIDS = [(g, f) for g, members in architectures.GRIDS.items() for f in members]


def every_member(shape):
  for name, family in GRIDS:
    yield from architectures.grid(name, family, shape, 10)


# --- counts, by formulas that know nothing of named axes ---------------------


def dense(inputs, outputs):
  return inputs * outputs + outputs


def dnn_counts(a, shape, classes):
  sizes = [math.prod(shape), *a.widths, classes]
  params = sum(dense(*pair) for pair in itertools.pairwise(sizes))
  return params, sum(x * y for x, y in itertools.pairwise(sizes))


def cnn_counts(a, shape, classes):
  height, width, channels = shape
  if a.depth == 1:
    height, width = height - 2, width - 2
  params = macs = 0
  for i, out in enumerate(a.widths):
    if i:
      height, width = height // 2, width // 2
    params += dense(9 * channels, out)
    macs += 9 * channels * out * height * width
    channels = out
  inputs = height * width * channels
  return params + dense(inputs, classes), macs + inputs * classes


def vit_counts(a, shape, classes):
  patch, pool = a.options
  dim, blocks = a.widths[0], a.widths[1:]
  patches = (shape[0] // patch) * (shape[1] // patch)
  tokens = patches + (pool == "cls")
  inputs = patch**2 * shape[2]
  params = dense(inputs, dim) + tokens * dim + dim * (pool == "cls")
  params += 2 * dim + dense(dim, classes)
  macs = patches * inputs * dim + dim * classes
  for heads, size, mlp in zip(*[iter(blocks)] * 3, strict=True):
    inner = heads * size
    params += 4 * dim + 3 * dense(dim, inner) + dense(inner, dim)
    params += dense(dim, mlp) + dense(mlp, dim)
    macs += tokens * (4 * dim * inner + 2 * dim * mlp)
    macs += 2 * tokens**2 * inner
  return params, macs


COUNTS = {"dnn": dnn_counts, "cnn": cnn_counts, "vit": vit_counts}


def test_every_family_has_a_formula():
  assert COUNTS.keys() == architectures.FAMILIES.keys()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_counts_of_every_member_follow_the_formulas(shape):
  for a in every_member(shape):
    expected = COUNTS[a.family](a, shape, 10)
    assert (a.num_params(shape, 10), a.macs(shape, 10)) == expected, a


@pytest.mark.parametrize(
  "text, shape, params",
  [
    ("dnn:1", (28, 28, 1), 805),
    ("dnn:10", (28, 28, 1), 7_960),
    ("dnn:100", (28, 28, 1), 79_510),
    ("dnn:1000", (28, 28, 1), 795_010),
    ("dnn:1-1-1-1", (28, 28, 1), 811),
    ("dnn:10-10-10-10", (28, 28, 1), 8_290),
    ("dnn:100-100-100-100", (28, 28, 1), 109_810),
    ("dnn:1000-1000-1000-1000", (28, 28, 1), 3_798_010),
    ("dnn:1", (32, 32, 3), 3_093),
    ("dnn:10", (32, 32, 3), 30_840),
    ("dnn:100", (32, 32, 3), 308_310),
    ("dnn:1000", (32, 32, 3), 3_083_010),
    ("dnn:300-100", (28, 28, 1), 266_610),
    *((f"cnn:{c}", (28, 28, 1), 6_770 * c + 10) for c in (1, 7, 32)),
    *((f"cnn:{c}", (32, 32, 3), 9_028 * c + 10) for c in (1, 7, 32)),
  ],
)
def test_published_counts(text, shape, params):
  assert Architecture.parse(text).num_params(shape, 10) == params


# --- grids -------------------------------------------------------------------


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
    ["cnn:4", "dnn:2", "cnn:4"], "small", ["vit"], (8, 8, 1), 10
  )
  assert [str(a) for a in chosen] == ["cnn:4", "dnn:2"]


def test_selecting_a_grid_joins_its_families():
  chosen = architectures.select([], "tiny", ["cnn", "dnn"], (8, 8, 1), 10)
  assert chosen == [
    *architectures.grid("tiny", "cnn", (8, 8, 1), 10),
    *architectures.grid("tiny", "dnn", (8, 8, 1), 10),
  ]


# --- text --------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_text_of_every_member_reads_back(shape):
  texts = set()
  for a in every_member(shape):
    assert Architecture.parse(str(a)) == a
    texts.add(str(a))
  assert len(texts) == len(set(every_member(shape)))


def test_text_of_any_widths_reads_back():
  draw = random.Random(0)
  for _ in range(300):
    depth = draw.randint(1, 4)
    widths = [draw.randint(1, 9) for _ in range(3 * depth + 1)]
    options = (draw.choice([2, 4, 7]), draw.choice(["mean", "cls"]))
    for a in (
      Architecture("vit", tuple(widths), options),
      Architecture("dnn", tuple(widths[:depth])),
      Architecture("cnn", tuple(widths[:depth])),
    ):
      assert Architecture.parse(str(a)) == a, a
      assert a.depth == depth


@pytest.mark.parametrize(
  "text",
  [
    "dnn:30-30",
    "cnn:8",
    "cnn:8-16",
    "vit:p7-d32-l2-h4",
    "vit:p4-d8-l1-h2-cls",
    "vit:p4-d12-l2-h4.3",
    "vit:p4-d8-l2-h2-m64.50",
    "vit:p4-d10-l2-h3-k5.4",
    "vit:p4-d10-l3-h3.2.1-k4-m7-cls",
  ],
)
def test_canonical_texts_print_as_they_were_read(text):
  assert str(Architecture.parse(text)) == text


def test_defaults_may_be_spelled_out_and_parts_come_in_any_order():
  short = Architecture.parse("vit:p7-d32-l2-h4")
  assert short == Architecture.parse(" vit:h4.4-l2-k8.8-m64-d32-p7 ")


@pytest.mark.parametrize(
  "text, parts",
  [
    ("30-30", ["'30-30'", "FAMILY:SIZES"]),
    ("dn:30", ["'dn:30'", "did you mean 'dnn'"]),
    ("dnn:", ["width ''", "positive integer"]),
    ("dnn:3-0", ["width '0'", "positive integer"]),
    ("dnn:3--4", ["width ''"]),
    ("dnn:3.5", ["width '3.5'"]),
    ("cnn:8-x", ["channels 'x'"]),
    ("vit:d32-l2", ["p..., h... missing", "vit:p7-d32-l2-h4"]),
    ("vit:p7-d32-l2-h4-q1", ["part 'q1'"]),
    ("vit:p7-p7-d32-l2-h4", ["part 'p7'", "at most once"]),
    ("vit:p7-d32-l0-h4", ["'l0'", "positive integer"]),
    ("vit:p7-d32-l2-h5", ["dim 32", "heads (5,)", "with k"]),
    ("vit:p7-d32-l2-h4.4.4", ["h has 3 values for 2 blocks"]),
    ("vit:p7-d32.32-l2-h4", ["d takes one number"]),
  ],
)
def test_unreadable_texts_name_the_part(text, parts):
  with pytest.raises(ValueError) as error:
    Architecture.parse(text)
  for part in [repr(text), *parts]:
    assert part in str(error.value)


@pytest.mark.parametrize(
  "text, shape, message",
  [
    ("vit:p3-d4-l1-h1", (8, 8, 1), "patch 3 does not divide .*8x8.*2, 4"),
    ("cnn:1-1-1-1-1", (8, 8, 1), "5 convolutions .* do not fit .*8x8"),
    ("cnn:1", (2, 2, 1), "1 convolutions .* do not fit .*2x2"),
  ],
)
def test_networks_that_do_not_fit_the_images(text, shape, message):
  architecture = Architecture.parse(text)
  with pytest.raises(ValueError, match=message):
    architecture.num_params(shape, 10)
  with pytest.raises(ValueError, match=message):
    architectures.select([text], "tiny", ["dnn"], shape, 10)


@pytest.mark.parametrize(
  "name, family, near",
  [("papr", "dnn", "did you mean 'paper'"), ("tiny", "cmn", "mean 'cnn'")],
)
def test_unknown_grids_name_the_nearest(name, family, near):
  with pytest.raises(ValueError, match=near):
    architectures.grid(name, family, (8, 8, 1), 10)


# --- specs and parents -------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_specs_are_consistent(shape):
  for a in every_member(shape):
    spec = a.spec(Problem(shape, 10))
    assert len({leaf.path for leaf in spec.leaves}) == len(spec.leaves)
    used = {axis for leaf in spec.leaves for axis in leaf.axes}
    assert used == spec.sizes.keys()
    assert set(spec.unit_axes) <= used
    # Every unit is made by one leaf at least and read by another.
    for axis in spec.unit_axes:
      made = [f for f in spec.leaves if axis in f.axes[-f.outputs :]]
      read = [f for f in spec.leaves if axis in f.axes[: -f.outputs]]
      assert made and read
    assert a.sizes(Problem(shape, 10)) == {
      x: spec.sizes[x] for x in spec.unit_axes
    }


FAMILIES = {
  "dnn": ["dnn:3-5", "dnn:7", "dnn:1-1-4"],
  "cnn": ["cnn:2", "cnn:5"],
  "vit": ["vit:p4-d8-l2-h2", "vit:p4-d4-l1-h4-m9", "vit:p4-d6-l3-h1-k9"],
}
PARENTS = {
  "dnn": "dnn:7-7-7",  # what a shallow one lacks hands seven units on
  "cnn": "cnn:5",
  "vit": "vit:p4-d8-l3-h4.2.1-k9-m16.16.12",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_parent_is_the_smallest_that_holds_its_members(family):
  members = [Architecture.parse(text) for text in FAMILIES[family]]
  parent = architectures.parent(members)
  assert str(parent) == PARENTS[family]
  depth = max(a.depth for a in members)
  columns = zip(*(a.extended(depth).widths for a in members), strict=True)
  assert parent.widths == tuple(map(max, columns))
  assert architectures.parent([parent, *members]) == parent
  assert architectures.parent([parent]) == parent
  for order in itertools.permutations(members):
    assert architectures.parent(order) == parent


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_in_a_parent_name_all_its_axes_and_the_depth(family):
  members = [Architecture.parse(text) for text in FAMILIES[family]]
  parent = architectures.parent(members)
  spec = parent.spec(Problem((8, 8, 1), 10))
  for a in members:
    assert a.skeleton == parent.skeleton
    sizes = a.sizes(Problem((8, 8, 1), 10), parent.depth)
    assert sizes.pop("depth") == a.depth
    assert sizes.keys() == set(spec.unit_axes)
    assert all(size <= spec.sizes[axis] for axis, size in sizes.items())
    # The axes of its own layers have the sizes that they have alone.
    assert a.sizes(Problem((8, 8, 1), 10)).items() <= sizes.items()


@pytest.mark.parametrize("family", FAMILIES)
def test_leaves_belong_to_the_layers_that_a_deeper_network_adds(family):
  members = [Architecture.parse(text) for text in FAMILIES[family]]
  parent = architectures.parent(members).spec(Problem((8, 8, 1), 10))
  for a in members:
    own = {leaf.path for leaf in a.spec(Problem((8, 8, 1), 10)).leaves}
    assert own == {leaf.path for leaf in parent.leaves if leaf.layer < a.depth}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_extended_by_nothing_is_itself(family):
  for text in FAMILIES[family]:
    a = Architecture.parse(text)
    assert a.extended(a.depth) == a
    if family != "cnn":
      assert a.extended(a.depth + 2).depth == a.depth + 2
      assert architectures.parent([a, a.extended(a.depth + 2)]).widths == (
        a.extended(a.depth + 2).widths
      )


@pytest.mark.parametrize(
  "texts",
  [
    ["cnn:3", "cnn:3-3"],
    ["dnn:3", "cnn:3"],
    ["vit:p4-d4-l1-h1", "vit:p2-d4-l1-h1"],
    ["vit:p4-d4-l1-h1", "vit:p4-d4-l1-h1-cls"],
    [],
  ],
)
def test_other_skeletons_have_no_parent(texts):
  with pytest.raises(ValueError, match="of one family and options"):
    architectures.parent([Architecture.parse(text) for text in texts])


def test_architectures_are_values():
  a = Architecture.parse("dnn:3")
  assert {a: 1}[Architecture("dnn", (3,))] == 1
  assert a < Architecture.parse("dnn:4")
  with pytest.raises(dataclasses.FrozenInstanceError):
    a.widths = (4,)  # pyright: ignore
