"""Programs: declared once, compiled once for everything they depend on."""

import functools
from unittest import mock

import jax
import numpy as np
import pytest

from minarch_jax import random
from minarch_jax.architectures import Architecture
from minarch_jax.compression import scoring
from minarch_jax.compression.grid import Rule
from minarch_jax.engine import packs, population
from minarch_jax.engine import session as sessions
from minarch_jax.engine.planning import Pack
from minarch_jax.engine.programs import Program, Table
from minarch_jax.random import Purpose
from tests.engine.small_packs import CONFIG, dataset, pack_of

LAYOUT = population.Mapping(tuple(jax.local_devices()[:1]))


def make_scaled(*, scale, offset=0):
  return lambda x, y: scale * x + y + offset


KINDS = {"x": "network", "y": "shared"}
SCALED = Program(make_scaled, KINDS)


def run(table, program=SCALED, layout=LAYOUT, x=None, **static):
  x = np.ones((1, 2, 3), np.float32) if x is None else x
  arguments = program.ordered({"y": np.float32(1), "x": x})
  call, spent = table.find(program, static, layout, arguments, hot=False)
  return np.asarray(call(*arguments)), spent


def assert_equal(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


# --- the key -----------------------------------------------------------------


def test_equal_requests_share_a_program():
  table = Table()
  first, spent = run(table, scale=2)
  again, nothing = run(table, scale=2)
  assert len(table) == 1 and spent > 0 == nothing
  np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize(
  "changes, expected",
  [
    ({"scale": 3}, 4),
    ({"offset": 5}, 8),
    ({"x": np.ones((1, 2, 4), np.float32)}, 3),
    ({"x": np.ones((1, 2, 3), np.int32)}, 3),
    ({"program": Program(make_scaled, {"x": "network", "y": "member"})}, None),
    ({"program": Program(make_scaled, KINDS, donated=("x",))}, 3),
    ({"layout": population.Mapping(LAYOUT.devices, members="map")}, 3),
  ],
  ids=["static", "other static", "shape", "type", "kinds", "donated", "layout"],
)
def test_another_request_gets_a_program_of_its_own(changes, expected):
  table = Table()
  np.testing.assert_array_equal(run(table, scale=2)[0], 3)
  if expected is None:  # of these kinds the arguments do not fit
    with pytest.raises(ValueError, match="vmap"):
      run(table, scale=2, **changes)
    assert len(table) == 1
  else:
    found, spent = run(table, **{"scale": 2} | changes)
    np.testing.assert_array_equal(found, expected)
    assert len(table) == 2 and spent > 0
  np.testing.assert_array_equal(run(table, scale=2)[0], 3)


def make_sum():
  return lambda tree: sum(jax.tree.leaves(tree))


def test_the_structure_of_arguments_counts_beside_their_shapes():
  table, one = Table(), np.ones((1, 1), np.float32)
  program = Program(make_sum, {"tree": "network"})
  for tree in ({"a": one, "b": one}, {"a": one, "c": one}, [one, one]):
    call, _ = table.find(program, {}, LAYOUT, (tree,), False)
    assert call(tree) == 2
  assert len(table) == 3


# --- what is refused ---------------------------------------------------------


def closing_over(secret, other):
  def make(*, scale):
    return lambda x, y: scale * x + y + secret + other

  return make


class Maker:
  def make(self, *, scale):
    return lambda x, y: scale * x + y


def test_a_program_that_closes_over_a_variable_is_refused():
  with pytest.raises(ValueError, match="make closes over other, secret; make"):
    Program(closing_over(1, 2), KINDS)


@pytest.mark.parametrize(
  "make", [Maker().make, functools.partial(make_scaled, scale=2), Maker]
)
def test_what_remembers_values_is_refused(make):
  with pytest.raises(ValueError, match="is not a function of a module"):
    Program(make, KINDS)


@pytest.mark.parametrize(
  "given, named",
  [
    ({"x": 1}, "y"),
    ({}, "x, y"),
    ({"x": 1, "y": 2, "z": 3}, "z"),
    ({"x": 1, "why": 2}, "why, y"),
  ],
)
def test_wrong_and_missing_arguments_are_named(given, named):
  message = f"make_scaled takes x, y; wrong or missing: {named}$"
  with pytest.raises(TypeError, match=message):
    SCALED.ordered(given)


def test_arguments_are_put_in_the_order_of_the_declaration():
  assert SCALED.ordered({"y": 2, "x": 1}) == (1, 2)


def test_a_static_value_that_cannot_be_hashed_is_named():
  table = Table()
  with pytest.raises(TypeError, match=r"make_scaled: .*offset=\[1, 2\] can"):
    run(table, scale=2, offset=[1, 2])
  assert not len(table)


def test_an_unknown_static_value_is_refused_and_leaves_no_entry():
  table = Table()
  with pytest.raises(TypeError, match="unexpected keyword argument 'slope'"):
    run(table, scale=2, slope=1)
  assert not len(table)
  np.testing.assert_array_equal(run(table, scale=2)[0], 3)


def test_a_program_that_did_not_compile_is_compiled_when_asked_again():
  session = sessions.open_session(CONFIG, dataset())
  placed = sessions.place(session, pack_of("dnn"))
  with (
    mock.patch.object(population, "compile", side_effect=OSError("disk")),
    pytest.raises(OSError, match="disk"),
  ):
    packs.initial(placed)
  assert not session.programs
  assert packs.initial(placed)["output"]["kernel"].any()


# --- two configurations in one session ---------------------------------------


@pytest.fixture
def quick(skip_optimizations, monkeypatch):
  """One device, little compilation: what is compared is equal bit for bit."""
  skip_optimizations(True)
  devices = jax.local_devices()[:1]
  monkeypatch.setattr(jax, "local_devices", lambda: devices)


SMALL = Architecture.parse("dnn:4")
PACK = Pack((SMALL,), (3,), SMALL, 1)


def opened(**changes):
  return sessions.open_session(CONFIG.replace(**changes), dataset())


def trained(session):
  found = packs.train(session, PACK)
  return found.params, found.curve, found.scores


def differ(found, other):
  pairs = zip(*map(jax.tree.leaves, (found, other)), strict=True)
  return any(not np.array_equal(*pair) for pair in pairs)


@pytest.mark.usefixtures("quick")
def test_recipes_in_one_session_train_as_they_do_alone():
  recipes = [
    {"optimizer": "adam"},
    {"optimizer": "sgd", "momentum": 0.9},
    {"optimizer": "sgd", "momentum": 0.5},
    {"compute_dtype": "bfloat16"},
  ]
  shared = opened()
  found = [trained(shared.with_config(**changes)) for changes in recipes]
  assert len(shared.programs) == 1 + len(recipes)  # one of them draws
  again = [trained(shared.with_config(**changes)) for changes in recipes]
  assert len(shared.programs) == 1 + len(recipes)
  assert_equal(again, found)
  for i, changes in enumerate(recipes[1:], 1):  # the first came to an empty one
    assert_equal(found[i], trained(opened(**changes)))
    assert all(differ(found[i], other) for other in found[:i])
  # What differs in data alone, as rates do, shares a program.
  session = shared.with_config(learning_rate=0.02, schedule="constant")
  other = packs.train(session, PACK)
  assert other.compile_seconds == 0
  assert len(shared.programs) == 1 + len(recipes)
  assert differ(other.params, found[0][0])


@pytest.mark.usefixtures("quick")
def test_each_purpose_draws_its_own_weights():
  placed = sessions.place(opened(), PACK)
  drawn = {purpose: packs.initial(placed, purpose) for purpose in Purpose}
  assert len(placed.session.programs) == 1
  for purpose in Purpose:
    assert_equal(packs.initial(placed, purpose), drawn[purpose])
    kernel = drawn[purpose]["hidden_0"]["kernel"][0, 0]
    key = random.key_for(PACK.seeds[0], purpose)
    (values,) = random.normals(key, [(("hidden_0", "kernel"), kernel.shape)])
    np.testing.assert_array_equal(np.sign(kernel), np.sign(values))
  assert len(placed.session.programs) == 1


RULES = (
  Rule("magnitude", "global"),
  Rule("magnitude", "layerwise"),
  Rule("random", "global"),
)


def kept(session, params, rule):
  """Looks at what one rule keeps of the weights."""
  ranked = scoring.rank(session, PACK, params, [rule])
  masks = scoring.masks_of(
    ranked.placed, rule, ranked.places[rule], [0.7] * len(params)
  )
  return scoring.pruned(ranked.networks, masks)


@pytest.mark.usefixtures("quick")
def test_rules_take_turns_in_one_session():
  shared = opened()
  placed = sessions.place(shared, PACK)
  params = packs.split_members(packs.initial(placed), PACK, shared)
  found = [kept(shared, params, rule) for rule in RULES]
  count = len(shared.programs)
  for rule, expected in reversed(list(zip(RULES, found, strict=True))):
    assert_equal(kept(shared, params, rule), expected)
  # Initial weights are drawn, and numbers for the rule that is random.
  assert len(shared.programs) == count == 2
  for i, rule in enumerate(RULES):
    assert all(differ(found[i], other) for other in found[:i])
    if i:
      assert_equal(kept(opened(), params, rule), found[i])
