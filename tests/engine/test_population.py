"""Mapping: every layout over seeds, members and devices gives the same."""

import functools
import itertools
import json
import os
import re
import subprocess
import sys
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minarch_jax import registries
from minarch_jax.config import Config, ConfigError
from minarch_jax.engine import population

KINDS = ("network", "seed", "member", "shared")
SEEDS, MEMBERS = 8, 8


def function(network, seed, member, shared):
  """Reads all four kinds, has a matrix product and a loop inside."""

  def step(carry, row):
    return jnp.tanh(
      carry @ network["w"] + row + member * shared.sum()
    ), row @ row

  carry, products = jax.lax.scan(step, network["b"], seed)
  return {"carry": carry, "product": products.sum() + network["w"].sum()}


@functools.cache
def arguments():
  rng = np.random.default_rng(0)

  def draw(*shape):
    return rng.normal(size=shape).astype(np.float32)

  network = {"w": draw(SEEDS, MEMBERS, 3, 3), "b": draw(SEEDS, MEMBERS, 3)}
  return network, draw(SEEDS, 5, 3), draw(MEMBERS), draw(4)


@functools.cache
def one_by_one():
  network, seed, member, shared = arguments()
  jitted = jax.jit(function)
  rows = [
    [
      jitted(
        {k: v[s, a] for k, v in network.items()}, seed[s], member[a], shared
      )
      for a in range(MEMBERS)
    ]
    for s in range(SEEDS)
  ]
  rows = [jax.tree.map(lambda *x: np.stack(x), *row) for row in rows]
  return jax.tree.map(lambda *x: np.stack(x), *rows)


def layouts():
  for seeds, members in itertools.product(("vmap", "map"), repeat=2):
    yield 1, "shard_map", "seed", seeds, members
  for how, split in itertools.product(
    ("shard_map", "pmap"), ("seed", "member")
  ):
    yield 8, how, split, "map", "vmap"
  yield 2, "shard_map", "member", "vmap", "map"
  yield 2, "pmap", "seed", "vmap", "map"


def mapping_of(count, how, split, seeds, members):
  devices = tuple(jax.local_devices()[:count])
  return population.Mapping(
    devices, how, seeds=seeds, members=members, split=split
  )


def run(mapping, kinds=KINDS, values=None, **options):
  values = arguments() if values is None else values
  placed = [
    population.place(value, kind, mapping)
    for value, kind in zip(values, kinds, strict=True)
  ]
  program = population.compile(function, kinds, mapping, placed, **options)
  return jax.device_get(program.call(*placed))


@pytest.mark.parametrize(
  "layout", list(layouts()), ids=lambda x: "-".join(map(str, x))
)
def test_every_layout_equals_one_network_at_a_time(layout):
  found = run(mapping_of(*layout))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
    found,
    one_by_one(),
  )


@pytest.mark.parametrize("hot", [True, False])
def test_donated_arguments_are_given_up_and_results_stay(hot):
  mapping = mapping_of(2, "shard_map", "seed", "map", "vmap")
  kinds = ("network", "shared")

  def halve(network, shared):
    return jax.tree.map(lambda leaf: leaf * shared, network)

  network = arguments()[0]
  placed = population.place(network, "network", mapping)
  half = population.place(np.float32(0.5), "shared", mapping)
  program = population.compile(
    halve, kinds, mapping, (placed, half), donate=(0,), hot=hot
  )
  assert program.compile_seconds > 0
  found = program.call(placed, half)
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(a, b / 2), found, network
  )
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(placed))
  assert not half.is_deleted()


@pytest.mark.parametrize("kind, axis", [("network", 0), ("seed", 0)])
def test_each_device_holds_its_own_seeds(kind, axis):
  mapping = mapping_of(8, "shard_map", "seed", "map", "vmap")
  value = np.arange(16.0).reshape(8, 2)
  placed = population.place(value, kind, mapping)
  shards = sorted(placed.addressable_shards, key=lambda s: s.index[axis].start)
  assert [s.data.shape for s in shards] == [(1, 2)] * 8
  np.testing.assert_array_equal(placed, value)
  assert population.place(value, "member", mapping).is_fully_replicated
  assert population.place(value, "shared", mapping).is_fully_replicated


# --- minibatches -------------------------------------------------------------


def averaged(network, order, shared):
  """Looks at the images of each minibatch, the mean over all devices' parts."""

  def look(indices):
    return shared[indices].mean()

  seen = jax.vmap(jax.vmap(look))(order)
  return network * jax.lax.pmean(seen, population.AXIS)


@pytest.mark.parametrize("how", ["shard_map", "pmap"])
def test_one_network_has_its_minibatches_split(how):
  mapping = mapping_of(4, how, "batch", "map", "vmap")
  rng = np.random.default_rng(0)
  images = rng.normal(size=20).astype(np.float32)
  order = rng.integers(20, size=(1, 2, 3, 8)).astype(np.int32)
  network = np.full((1, 1, 2, 3), 2.0, np.float32)
  values = list(
    zip((network, order, images), ("network", "order", "shared"), strict=True)
  )
  placed = [population.place(value, kind, mapping) for value, kind in values]
  kinds = [kind for _, kind in values]
  program = population.compile(averaged, kinds, mapping, placed)
  found = jax.device_get(program.call(*placed))
  np.testing.assert_allclose(
    found[0, 0], 2 * images[order[0]].mean(-1), rtol=1e-6
  )


def test_minibatches_are_cut_along_their_images():
  mapping = mapping_of(8, "shard_map", "batch", "map", "vmap")
  order = np.arange(96, dtype=np.int32).reshape(1, 2, 3, 16)
  placed = population.place(order, "order", mapping)
  assert {s.data.shape for s in placed.addressable_shards} == {(1, 2, 3, 2)}
  np.testing.assert_array_equal(placed, order)
  for kind in KINDS:
    assert population.place(order, kind, mapping).is_fully_replicated


# --- the layout of a family --------------------------------------------------


@pytest.mark.parametrize("family", registries.FAMILIES.values())
def test_every_family_has_a_layout_for_every_backend(family):
  assert family.layouts.keys() == {"cpu", "other"}
  for seeds, members, convolution in family.layouts.values():
    assert {seeds, members} <= {"vmap", "map"}
    assert convolution in registries.CONVOLUTIONS


@pytest.mark.parametrize("family", registries.FAMILIES)
def test_flags_override_the_family(family):
  plain = population.mapping(Config(), family)
  assert (plain.seeds, plain.members, plain.convolution) == (
    registries.FAMILIES[family].layouts["cpu"]
  )
  assert len(plain.devices) == jax.local_device_count() == 8
  config = Config(
    seed_mapping="vmap",
    member_mapping="map",
    convolution="im2col",
    device_map="pmap",
  )
  one = population.mapping(config, family, large=True)
  assert one.split == "batch"
  found = population.mapping(config, family, slots=8, num_seeds=5)
  assert found == population.Mapping(
    *(plain.devices, "pmap", "vmap", "map", "im2col", "member"),
    level=registries.FAMILIES[family].level,
  )


@pytest.fixture
def table(tmp_path, monkeypatch):
  """Where a test keeps measured layouts, out of the user's own cache."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  population._measured.cache_clear()
  path = tmp_path / "minarch_jax" / "mapping.json"
  path.parent.mkdir()
  yield path
  population._measured.cache_clear()


def choices(family, **flags):
  found = population.mapping(Config().replace(**flags), family)
  return found.seeds, found.members, found.convolution


@pytest.mark.parametrize("family", registries.FAMILIES)
def test_what_was_measured_wins(table, family):
  assert choices(family) == registries.FAMILIES[family].layouts["cpu"]
  table.write_text(json.dumps({"cnn/cpu": ["vmap", "map", "im2col"]}))
  population._measured.cache_clear()
  expected = registries.FAMILIES[family].layouts["cpu"]
  expected = ("vmap", "map", "im2col") if family == "cnn" else expected
  assert choices(family) == expected


def test_a_flag_wins_more(table):
  table.write_text(json.dumps({"cnn/cpu": ["vmap", "map", "im2col"]}))
  assert choices("cnn", seed_mapping="map") == ("map", "map", "im2col")
  assert choices("cnn", convolution="stock") == ("vmap", "map", "stock")


@pytest.mark.parametrize(
  "text", ["{", "[]", '{"cnn/cpu": ["vmap", "map"]}', '{"a": ["v", "map", ""]}']
)
def test_a_broken_table_says_where_it_is(table, text):
  table.write_text(text)
  with pytest.raises(ConfigError, match=re.escape(str(table))):
    choices("cnn")


@pytest.mark.parametrize(
  "hot, disabled, level", [(True, False, 1), (False, False, 0), (True, True, 0)]
)
def test_programs_are_optimized_as_far_as_it_pays(
  skip_optimizations, hot, disabled, level
):
  mapping = population.Mapping(tuple(jax.local_devices()[:1]), level=1)
  ones = np.ones((1, 1, 3), np.float32)
  lowered, run = jax.stages.Lowered, jax.stages.Lowered.compile
  skip_optimizations(disabled)
  with mock.patch.object(lowered, "compile", autospec=True) as seen:
    seen.side_effect = run
    program = population.compile(
      lambda x: x + 1, ["network"], mapping, [ones], hot=hot
    )
  options = seen.call_args.kwargs["compiler_options"]
  assert options["xla_backend_optimization_level"] == level
  np.testing.assert_array_equal(program.call(ones), ones + 1)


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_other_compilers_are_given_no_options_of_the_cpu_s(
  monkeypatch, platform
):
  device = types.SimpleNamespace(platform=platform)
  mapping = population.Mapping((device,), level=1)
  traced = mock.MagicMock()
  monkeypatch.setattr(population, "trace", lambda *arguments: traced)
  for hot in (True, False):
    population.compile(lambda x: x, ["network"], mapping, [], hot=hot)
  compile = traced.lower.return_value.compile
  assert compile.call_args_list == [mock.call(compiler_options=None)] * 2


@pytest.mark.parametrize("how", ["shard_map", "pmap"])
def test_products_are_exact_off_the_cpu_too(monkeypatch, how):
  mapping = mapping_of(2, how, "seed", "map", "vmap")
  ones = np.ones((2, 1, 3, 3), np.float32)

  def lowered():
    traced = population.trace(lambda x: x @ x, ["network"], mapping, [ones])
    return traced.lower().as_text()

  assert "HIGHEST" not in lowered()
  monkeypatch.setattr(population, "platform", lambda devices: "gpu")
  assert "precision = [HIGHEST, HIGHEST]" in lowered()


# --- starting JAX ------------------------------------------------------------

COUNT = (
  "import jax; from minarch_jax.engine import population; "
  "population.use_cores(); print(jax.local_device_count())"
)


def test_one_device_per_core_unless_the_user_chose():
  free = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  chosen = free | {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}
  counts = []
  children = [
    subprocess.Popen(
      [sys.executable, "-c", COUNT],
      env=env | {"JAX_PLATFORMS": "cpu"},
      stdout=subprocess.PIPE,
      text=True,
    )
    for env in (free, chosen)
  ]
  for child in children:
    text, _ = child.communicate(timeout=120)
    counts.append(int(text))
  assert counts == [len(os.sched_getaffinity(0)), 3]


def test_devices_that_have_started_are_left_alone():
  population.use_cores()
  assert jax.local_device_count() == 8


def test_the_cache_of_programs_is_where_the_user_wants_it(
  tmp_path, monkeypatch
):
  chosen = {}
  monkeypatch.setattr(jax.config, "update", chosen.__setitem__)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  population.use_cache("")
  assert not chosen
  population.use_cache("default")
  name = "jax_compilation_cache_dir"
  assert chosen[name] == str(tmp_path / "minarch_jax" / "programs")
  population.use_cache(str(tmp_path / "mine"))
  assert chosen[name] == str(tmp_path / "mine")
  assert not list(tmp_path.iterdir())
