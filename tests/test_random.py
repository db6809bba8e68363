"""Random numbers by coordinate: the law of shapes, then distributions."""

import ast
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from minarch_jax import random
from minarch_jax.random import Purpose

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


def test_draws_stay_what_they_were():
  """Golden: any machine and version of JAX draws these initial values."""
  key = jax.random.key(7)
  found = random.bits(key, (2, 2))
  expected = [[3625411723, 195045567], [853912798, 632345896]]
  np.testing.assert_array_equal(found, np.array(expected, np.uint32))
  drawn = [float(value).hex() for value in random.uniform(key, (3,))]
  assert drawn == [
    "0x1.b02ec80000000p-1",
    "0x1.7405000000000p-5",
    "0x1.ccc4b80000000p-3",
  ]


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
  drawn = {"normal": random.normals, "uniform": random.uniforms}
  assert set(drawn) == set(random.LAWS)
  for law, of_leaves in drawn.items():
    found = jax.jit(random.LAWS[law])(key, *columns)
    expected = [leaf.ravel() for leaf in jax.device_get(of_leaves(key, leaves))]
    np.testing.assert_array_equal(found, np.concatenate(expected))
    order = np.random.default_rng(0).permutation(40)
    some = jax.jit(random.LAWS[law])(key, *(each[order] for each in columns))
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


# --- purposes ----------------------------------------------------------------

ROOT = pathlib.Path(__file__).parent.parent


def test_every_purpose_has_a_number_of_its_own_that_stays():
  # Golden: a number decides what was drawn, so it may change only together
  # with records.SCHEMA_VERSION.
  numbers = {"INIT": 0, "PRUNE": 1, "AGAIN": 2, "PROBE": 3, "MOVE": 4}
  numbers["LOSS"] = 5
  assert {name: int(each) for name, each in Purpose.__members__.items()} == (
    numbers
  )
  assert len(set(numbers.values())) == len(Purpose) == len(numbers)
  keys = [jax.random.key_data(random.key_for(5, each)) for each in Purpose]
  assert len(np.unique(keys, axis=0)) == len(Purpose)


def called(node):
  """The last name of what a call calls."""
  function = node.func
  return getattr(function, "attr", getattr(function, "id", None))


def ends_in(node, *names):
  """Says whether an expression is names joined by dots, or their end."""
  return (ast.unparse(node).split(".") if node else [])[-len(names) :] == [
    *names
  ]


def is_purpose(node, function):
  """Says whether an expression is a Purpose: a member, or a parameter."""
  if isinstance(node, ast.Attribute) and node.attr in Purpose.__members__:
    return ends_in(node.value, "Purpose")
  arguments = function.args
  parameters = [*arguments.args, *arguments.kwonlyargs]
  return isinstance(node, ast.Name) and any(
    each.arg == node.id and ends_in(each.annotation, "Purpose")
    for each in parameters
  )


def uses_of_keys():
  """Every call of key_for with the functions that it stands in."""

  def visit(node, path, functions):
    if isinstance(node, ast.FunctionDef | ast.Lambda):
      functions = [*functions, node]
    if isinstance(node, ast.Call) and called(node) == "key_for":
      yield path, node, functions
    for child in ast.iter_child_nodes(node):
      yield from visit(child, path, functions)

  for folder in ("minarch_jax", "experiments"):
    for path in sorted((ROOT / folder).rglob("*.py")):
      yield from visit(ast.parse(path.read_text()), path, [])


def test_every_key_says_what_it_is_for():
  used = set()
  for path, call, functions in uses_of_keys():
    where = f"{path.relative_to(ROOT)}:{call.lineno}"
    assert len(call.args) == 2 and not call.keywords, where
    purpose = call.args[1]
    assert any(is_purpose(purpose, each) for each in functions), where
    used.add(ast.unparse(purpose))
  assert {"random.Purpose.PRUNE", "random.Purpose.PROBE"} <= used


def test_seeds_become_keys_in_one_place():
  for path in sorted((ROOT / "minarch_jax").rglob("*.py")):
    if path.name == "random.py":
      continue
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Call):
        text = ast.unparse(node.func)
        assert text not in ("jax.random.key", "jax.random.PRNGKey"), path
