"""Architectures: text round trips, values, parents."""

import dataclasses
import itertools
import random

import pytest

from minarch_jax import architectures
from minarch_jax.architectures import Architecture, Problem
from tests.architectures.members import every_member, SHAPES

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
    architectures.select([text], "tiny", ["dnn"], Problem(shape, 10))


# --- parents -----------------------------------------------------------------


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
