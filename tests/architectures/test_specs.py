"""Specs: exact counts, and leaves whose axes fit together."""

import itertools
import math

import pytest

from minarch_jax import registries
from minarch_jax.architectures import Architecture, Problem
from tests.architectures.members import every_member, SHAPES

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
  assert COUNTS.keys() == registries.FAMILIES.keys()


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


# --- leaves ------------------------------------------------------------------


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
