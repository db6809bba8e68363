"""Families: laws of everything that a family says about its networks."""

from flax import traverse_util
import jax
import numpy as np
import pytest

from minarch_jax import architectures, registries
from minarch_jax.architectures import Architecture, Family, Problem
from tests.architectures.members import SHAPES

FAMILIES = registries.FAMILIES
CLASSES = 7


def bodies(family, shape):
  """Widths and options of every member of the family's grids."""
  for grid in FAMILIES[family].grids.values():
    yield from grid(Problem(shape, CLASSES))


def fitting(family, shape):
  """Every member that fits the images, and its spec."""
  for body in dict.fromkeys(bodies(family, shape)):
    try:
      yield body, FAMILIES[family].spec(*body, Problem(shape, CLASSES))
    except ValueError as error:
      assert str(error)


def shapes_of(spec, *lead):
  return {leaf.path: (*lead, *spec.shape(leaf)) for leaf in spec.leaves}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_registered_family_is_a_family(name):
  assert isinstance(FAMILIES[name], Family)
  assert architectures.FAMILIES is FAMILIES


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_parsing_undoes_formatting(name, shape):
  family = FAMILIES[name]
  for body in bodies(name, shape):
    assert family.parse(family.format(*body)) == body


@pytest.mark.parametrize("text", ["", "0", "-3", "a", "3-", "3--3", "3-0", "½"])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_no_architecture_is_refused_with_a_reason(name, text):
  with pytest.raises(ValueError) as error:
    FAMILIES[name].parse(text)
  assert str(error.value)


@pytest.mark.parametrize("lead", [(), (3,)], ids=["one", "seeds"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_problem_is_read_off_the_shapes_of_leaves(name, shape, lead):
  family, count = FAMILIES[name], 0
  for body, spec in fitting(name, shape):
    found = family.problem(shapes_of(spec, *lead), *body)
    assert found.num_classes == CLASSES
    # Pooling floors odd sizes: images of that size have the same network.
    assert shapes_of(family.spec(*body, found)) == shapes_of(spec), body
    count += 1
  assert count


@pytest.mark.parametrize("name", FAMILIES)
def test_added_layers_make_a_parent_of_one_skeleton(name):
  family, problem = FAMILIES[name], Problem((8, 8, 1), CLASSES)
  for body, spec in fitting(name, (8, 8, 1)):
    member = Architecture(name, *body)
    assert member.depth == family.depth(body[0]) >= 1
    if family.deepen is None:
      assert member.extended(member.depth + 2) == member
      continue
    more = family.deepen(body[0], 2)
    assert family.depth(body[0] + more) == member.depth + 2
    parent = architectures.parent([member, member.extended(member.depth + 2)])
    wide = {leaf.path: leaf for leaf in parent.spec(problem).leaves}
    assert wide.keys() > {leaf.path for leaf in spec.leaves}
    for path in wide.keys() - {leaf.path for leaf in spec.leaves}:
      assert wide[path].layer >= member.depth


@pytest.mark.parametrize("name", FAMILIES)
def test_the_kernel_of_the_images_is_a_leaf_that_reads_no_units(name):
  kernel = FAMILIES[name].image_kernel
  if kernel is not None:
    for _, spec in fitting(name, (8, 8, 1)):
      (leaf,) = [leaf for leaf in spec.leaves if leaf.path == kernel]
      assert leaf.is_kernel and len(leaf.axes) == 2
      assert leaf.axes[0] not in spec.unit_axes


@pytest.mark.parametrize("name", FAMILIES)
def test_costs_and_layouts_are_complete(name):
  family = FAMILIES[name]
  *costs, probe = family.costs
  assert all(cost > 0 for cost in costs)
  if probe:
    body, *readings = probe
    assert Architecture.parse(f"{name}:{body}").family == name
    assert all(reading > 0 for reading in readings)
  assert family.layouts.keys() == {"cpu", "other"}
  for layout in family.layouts.values():
    assert {layout.seeds, layout.members} <= {"map", "vmap"}
    assert layout.convolution in registries.CONVOLUTIONS
  assert family.level in range(4)  # LLVM has no others


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_family_names_exists(name):
  assert isinstance(FAMILIES[name].network, type)
  remove = FAMILIES[name].remove_units
  assert remove is None or callable(remove)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_grid_has_members_that_fit(name):
  for grid in FAMILIES[name].grids:
    assert grid in registries.grids()
    assert architectures.grid(grid, name, (8, 8, 1), CLASSES)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_module_declares_exactly_the_leaves_of_the_spec(name):
  every = list(fitting(name, (8, 8, 1)))
  for body, spec in every[:: len(every) // 4]:
    member, problem = Architecture(name, *body), Problem((8, 8, 1), CLASSES)
    module = FAMILIES[name].network(member, problem)
    x = jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32)
    tree = jax.eval_shape(
      module.init, jax.random.key(0), x, member.sizes(problem)
    )
    leaves = traverse_util.flatten_dict(tree["params"])
    found = {path: leaf.shape for path, leaf in leaves.items()}
    assert found == shapes_of(spec), member
