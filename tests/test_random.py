"""Random numbers by coordinate: the law of shapes, then distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from minarch_jax import random

DRAWS = {
  "bits": random.bits,
  "uniform": random.uniform,
  "normal": random.normal,
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize(
  "small, large", [((3,), (7,)), ((2, 3), (5, 9)), ((2, 3, 1, 4), (3, 3, 5, 6))]
)
def test_a_smaller_shape_is_the_leading_block(draw, small, large):
  key = jax.random.key(3)
  block = tuple(slice(size) for size in small)
  draw = jax.jit(draw, static_argnums=1)
  found = np.asarray(draw(key, large))
  np.testing.assert_array_equal(draw(key, small), found[block])


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_jit_and_vmap_change_nothing(draw):
  keys = jax.random.split(jax.random.key(0), 3)
  alone = np.stack([draw(key, (4, 5)) for key in keys])
  mapped = jax.jit(jax.vmap(lambda key: draw(key, (4, 5))))(keys)
  np.testing.assert_array_equal(mapped, alone)


@pytest.mark.parametrize("shape", [(), (0,), (1, 0, 3)])
def test_scalar_and_empty_shapes(shape):
  assert random.normal(jax.random.key(0), shape).shape == shape


def test_typed_and_raw_keys_agree():
  key = jax.random.key(5)
  np.testing.assert_array_equal(
    random.bits(key, (3,)), random.bits(jax.random.key_data(key), (3,))
  )


def test_every_coordinate_and_key_differs():
  keys = jax.random.split(jax.random.key(1), 4)
  drawn = jax.vmap(lambda key: random.bits(key, (16, 16)))(keys)
  assert len(np.unique(drawn)) == drawn.size


def test_distributions():
  key = jax.random.key(2)
  normal = np.asarray(random.normal(key, (300, 300))).ravel()
  uniform = np.asarray(random.uniform(key, (300, 300))).ravel()
  assert stats.kstest(normal, "norm").pvalue > 1e-3
  assert stats.kstest(uniform, "uniform").pvalue > 1e-3


def test_float64_normals_refine_float32_ones():
  with jax.enable_x64(True):
    key = jax.random.key(7)
    normal = jax.jit(random.normal, static_argnums=(1, 2))
    fine = np.asarray(normal(key, (50, 40), jnp.float64))
    coarse = np.asarray(normal(key, (50, 40), jnp.float32))
    assert fine.dtype == jnp.float64
    np.testing.assert_allclose(fine, coarse, rtol=0, atol=1e-4)
    assert (fine != coarse).mean() > 0.9


@pytest.mark.parametrize("draw", [random.normals, random.uniforms])
def test_leaves_draw_by_path_and_coordinate_alone(draw):
  key = jax.random.key(0)
  small, large = jax.device_get(
    [
      draw(key, [(("a", "kernel"), (2, 3)), (("b", "kernel"), (4,))]),
      draw(key, [(("b", "kernel"), (9,)), (("a", "kernel"), (5, 4))]),
    ]
  )
  np.testing.assert_array_equal(small[0], large[1][:2, :3])
  np.testing.assert_array_equal(small[1], large[0][:4])
  assert len(np.unique(np.concatenate([x.ravel() for x in large]))) == 29


def test_drawing_at_coordinates_is_drawing_the_leaves():
  key = jax.random.key(4)
  leaves = [(("a", "kernel"), (2, 3)), (("b",), (4,)), (("c",), (3, 2, 1, 5))]
  columns = random.coordinates(leaves)
  assert {(c.dtype, c.shape) for c in columns} == {(np.dtype("uint32"), (40,))}
  found = jax.jit(random.draw)(key, *columns)
  normals = jax.device_get(random.normals(key, leaves))
  expected = [leaf.ravel() for leaf in normals]
  np.testing.assert_array_equal(found, np.concatenate(expected))
  order = np.random.default_rng(0).permutation(40)
  some = jax.jit(random.draw)(key, *(column[order] for column in columns))
  np.testing.assert_array_equal(some, found[order])


@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (70_000,)])
def test_shapes_that_coordinates_cannot_count(shape):
  message = "at most 4 axes of at most 65536"
  with pytest.raises(ValueError, match=message):
    random.bits(jax.random.key(0), shape)
  with pytest.raises(ValueError, match=message):
    random.coordinates([(("a",), shape)])


def test_other_generators_are_refused():
  with pytest.raises(ValueError, match="no Threefry key"):
    random.bits(jax.random.key(0, impl="rbg"), (2,))
