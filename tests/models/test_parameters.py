"""Parameters in a parent's shapes: padding, masks, initial values."""

import itertools

import chex
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from minarch_jax import architectures, models, registries
from minarch_jax.architectures import Architecture, Problem
from tests.models.networks import (
  assert_trees_equal,
  CLASSES,
  drawn,
  ONE_OF_EACH,
  PADDED,
  pair,
  parse,
  SHAPE,
)

# --- padding -----------------------------------------------------------------


@pytest.mark.parametrize(
  "text, lead, library",
  [
    *itertools.product(PADDED, [(), (2,), (2, 3)], [np]),
    *itertools.product(ONE_OF_EACH, [(2,)], [jnp]),
  ],
)
def test_unpad_undoes_pad(text, lead, library):
  _, (_, wide), _ = pair(text)
  spec = parse(text).spec(Problem(SHAPE, CLASSES))
  rng = np.random.default_rng(0)
  params = traverse_util.unflatten_dict(
    {
      leaf.path: library.asarray(
        rng.normal(size=(*lead, *spec.shape(leaf))).astype(np.float32)
      )
      for leaf in spec.leaves
    }
  )
  padded = models.pad(params, spec, wide)
  assert_trees_equal(models.unpad(padded, spec, wide), params)
  for leaf in wide.leaves:
    value = traverse_util.flatten_dict(padded)[leaf.path]
    assert value.shape == (*lead, *wide.shape(leaf))
    assert isinstance(value, np.ndarray) == (library is np)
  # Nothing is lost, and nothing else is there.
  flat, own = map(traverse_util.flatten_dict, (padded, params))
  for path, value in flat.items():
    total = np.abs(own.get(path, 0)).sum(dtype=np.float64)
    np.testing.assert_allclose(
      np.abs(value).sum(dtype=np.float64), total, rtol=1e-6
    )


@pytest.mark.parametrize("text", PADDED)
def test_width_masks_mark_what_padding_keeps(text):
  (_, spec), (_, wide), sizes = pair(text)
  ones = traverse_util.unflatten_dict(
    {leaf.path: np.ones(spec.shape(leaf), bool) for leaf in spec.leaves}
  )
  expected = models.pad(ones, spec, wide)
  assert_trees_equal(models.width_masks(wide, sizes), expected)
  traced = jax.jit(lambda sizes: models.width_masks(wide, sizes))(sizes)
  assert_trees_equal(traced, expected)
  count = sum(leaf.sum() for leaf in jax.tree.leaves(expected))
  assert count == parse(text).num_params(SHAPE, CLASSES)


@pytest.mark.parametrize("family", registries.FAMILIES)
def test_several_members_are_marked_and_scaled_as_one_by_one(family):
  texts = [text for text in PADDED if text.startswith(family)]
  texts = [t for t in texts if parse(t).skeleton == parse(texts[0]).skeleton]
  parent = architectures.parent([parse(PADDED[text]) for text in texts])
  spec = parent.spec(Problem(SHAPE, CLASSES))
  depth = None if family == "cnn" else parent.depth
  each = [parse(text).sizes(Problem(SHAPE, CLASSES), depth) for text in texts]
  stacked = {axis: np.array([s[axis] for s in each]) for axis in each[0]}
  masks = models.width_masks(spec, stacked)
  _, cut = models.coordinates(spec)
  rng = np.random.default_rng(0)
  draws = cut(rng.normal(size=(2, parent.num_params(SHAPE, CLASSES))))
  found = models.initial(draws, spec, stacked)
  for i, sizes in enumerate(each):
    assert_trees_equal(
      jax.tree.map(lambda leaf, i=i: leaf[i], masks),
      models.width_masks(spec, sizes),
    )
    for seed in range(2):
      one = {path: value[seed] for path, value in draws.items()}
      assert_trees_equal(
        jax.tree.map(lambda leaf, i=i, j=seed: leaf[j, i], found),
        models.initial(one, spec, sizes),
      )


def test_unit_rows_move_the_kernel_of_the_images_and_nothing_else():
  architecture = Architecture.parse("dnn:3-2")
  model = models.make_model(architecture, Problem((2, 2, 1), 3))
  params = jax.jit(model.init)(jax.random.key(0))
  moments = optax.scale_by_adam().init(params)
  kernel = architecture.traits.image_kernel
  rows = models.unit_rows((params, moments), kernel)
  for tree in (rows[0], rows[1].mu):
    flat = models.flatten(tree)
    shapes = {"/".join(path): leaf.shape for path, leaf in flat.items()}
    assert shapes.pop("hidden_0/kernel") == (3, 4)
    assert shapes.pop("hidden_1/kernel") == (3, 2)
    assert shapes.pop("output/kernel") == (2, 3)
    assert all(len(shape) == 1 for shape in shapes.values())
  x = jax.random.normal(jax.random.key(1), (5, 2, 2, 1))
  np.testing.assert_allclose(
    models.on_unit_rows(model, architecture).apply(rows[0], x, None),
    model.apply(params, x, None),
    rtol=1e-6,
  )
  chex.assert_trees_all_equal(models.unit_rows(rows, kernel), (params, moments))


@pytest.mark.parametrize("text", ["cnn:2-3", "vit:p2-d4-l1-h2"])
def test_other_families_stay_as_they_are(text):
  architecture = parse(text)
  model = models.make_model(architecture, Problem((4, 4, 1), 3))
  params = drawn(model, 0)
  found = models.unit_rows(params, architecture.traits.image_kernel)
  chex.assert_trees_all_equal(found, params)


def test_a_network_in_itself_has_no_padding():
  spec = parse("dnn:5-3").spec(Problem(SHAPE, CLASSES))
  masks = models.width_masks(
    spec, parse("dnn:5-3").sizes(Problem(SHAPE, CLASSES))
  )
  assert all(mask.all() for mask in jax.tree.leaves(masks))
