"""Probes: each against its definition, in a parent as alone, and useful."""

from typing import Any

import jax
from jax import flatten_util
from jax import numpy as jnp
import numpy as np
import polars as pl
import pytest

from minarch_jax import config, models, types
from minarch_jax import records as records_lib
from minarch_jax.architectures import Architecture, Problem
from minarch_jax.engine import packs
from minarch_jax.engine import session as sessions
from minarch_jax.stages import probes, setup
from minarch_jax.types import Batch
from tests.analysis import simulated

SHAPE, CLASSES = (8, 8, 1), 10
NAMES = ("dnn:5-4", "cnn:2-3", "vit:p4-d4-l1-h2")


def batch(count=16):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(count, *SHAPE)).astype(np.float32)
  return Batch(x, rng.integers(0, CLASSES, count).astype(np.int32))


def network(name):
  architecture = Architecture.parse(name)
  model = models.make_model(architecture, Problem(SHAPE, CLASSES))
  spec = architecture.spec(Problem(SHAPE, CLASSES))
  sizes: Any = {axis: spec.sizes[axis] for axis in spec.unit_axes}
  init = jax.jit(model.init)
  params: Any = jax.device_get(init(jax.random.key(0), sizes))
  return model, spec, sizes, params, jax.tree.map(np.ones_like, params)


def test_sharpness_is_the_largest_curvature_of_a_quadratic():
  rng = np.random.default_rng(0)
  basis = np.linalg.qr(rng.normal(size=(6, 6)))[0]
  matrix = basis @ np.diag([9.0, 3, 2, 1, 0.5, 0]) @ basis.T

  def loss(params):
    return params["a"] @ matrix @ params["a"] / 2

  params = {"a": jnp.ones(6)}
  found = probes.sharpness(
    loss, params, {"a": jnp.ones(6)}, jax.random.key(0), iterations=30
  )
  assert found == pytest.approx(9, rel=1e-3)
  # What does not exist has no curvature.
  masks = {"a": jnp.arange(6) < 3}
  found = probes.sharpness(
    loss, params, masks, jax.random.key(0), iterations=60
  )
  expected = np.linalg.eigvalsh(matrix[:3, :3])[-1]
  assert found == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_probes_are_what_they_are_called(name):
  model, spec, sizes, params, masks = network(name)
  data = batch()
  found = jax.jit(probes.make_probe(model, spec, iterations=60))(
    params, data, sizes, masks, jax.random.key(1)
  )
  logits = np.asarray(jax.jit(model.apply)(params, data.x, sizes))

  def loss(params):
    log_p = jax.nn.log_softmax(model.apply(params, data.x, sizes))
    return -log_p[jnp.arange(len(data.y)), data.y].mean()

  value, gradient = jax.jit(jax.value_and_grad(loss))(params)
  flat, unflatten = flatten_util.ravel_pytree(params)
  slope = jax.grad(lambda vector: loss(unflatten(vector)))

  @jax.jit
  def hessian(flat):
    def row(direction):
      return jax.jvp(slope, (flat,), (direction,))[1]

    return jax.lax.map(row, jnp.eye(len(flat)))

  hessian = hessian(flat)
  eigenvalues = np.linalg.eigvalsh(np.asarray(hessian))
  largest = eigenvalues[np.argmax(np.abs(eigenvalues))]
  assert found.loss == pytest.approx(float(value), rel=1e-5)
  squares = sum(
    float((g**2).sum()) for g in jax.tree.leaves(jax.device_get(gradient))
  )
  assert found.gradient_norm == pytest.approx(squares**0.5, rel=1e-4)
  centred = logits - logits.mean(axis=1, keepdims=True)
  assert found.logit_scale == pytest.approx(
    float(np.sqrt((centred**2).mean())), rel=1e-5
  )
  assert found.sharpness == pytest.approx(largest, rel=0.05)


@pytest.mark.parametrize(
  ("name", "path", "share"),
  [
    ("dnn:5-4", ("hidden_0", "bias"), 5 / 9),
    ("cnn:2-3", ("conv_0", "bias"), 2 / 5),
    ("vit:p4-d4-l1-h2", ("block_0", "mlp", "in", "bias"), 1.0),
  ],
)
def test_dead_units_are_counted(name, path, share):
  model, spec, sizes, params, _ = network(name)
  *parents, last = path
  leaf = params
  for key in parents:
    leaf = leaf[key]
  leaf[last] = leaf[last] - 1e3
  kept = {"dnn": "hidden_1", "cnn": "conv_1"}.get(spec_family(name))
  if kept:  # the layer after is alive by its own bias
    params[kept]["bias"] = params[kept]["bias"] + 1.0

  @jax.jit
  def dead(params):
    _, hidden = types.record_inputs(
      lambda params, x, **tap: model.apply(params, x, sizes, **tap),
      *(params, batch().x),
    )
    return probes.dead_share(hidden, spec, sizes)

  assert dead(params) == pytest.approx(share)


def spec_family(name):
  return name.partition(":")[0]


def test_every_family_has_activated_units():
  for name in NAMES:
    assert probes.activated(network(name)[1]), name


@pytest.mark.parametrize(
  "group",
  [("dnn:4", "dnn:9-6"), ("cnn:2", "cnn:5")],
)
def test_packs_give_what_networks_alone_give(digits, group):
  settings = config.Config(num_seeds=2, num_epochs=2, families=())
  session = sessions.open_session(settings, digits)
  members = [Architecture.parse(name) for name in group]

  def probed(members):
    planned = packs.plan(session, members, list(settings.seeds))
    return pl.concat(probes.probed(session, pack, 3) for pack in planned)

  together = probed(members)
  assert len(together) == 4 * len(members)
  assert set(together["step"]) == {0, 3}
  # The other one is the parent of both and lacks nothing.
  alone = probed(members[:1])
  small = together.filter(architecture=group[0])
  keys = ["architecture", "seed", "step"]
  small, alone = small.sort(keys), alone.sort(keys)
  for name in probes.Probe._fields:
    np.testing.assert_allclose(
      small[name], alone[name], rtol=2e-2, atol=1e-5, err_msg=name
    )
  assert (together.filter(step=3)["loss"] < 3).all()
  records_columns = set(records_lib.SCHEMAS["probes"])
  assert set(together.columns) == records_columns


def test_what_is_recorded_is_probed_and_nothing_twice(digits, tmp_path):
  # The grid of the flags holds other architectures than the records do.
  settings = config.Config(num_seeds=2, num_epochs=2, grid="tiny")
  session = sessions.open_session(settings, digits)
  networks = simulated.handmade({4: [0.9] * 2, 5: [0.9] * 2}).networks
  networks = networks.with_columns(run_id=pl.lit(setup.recipe_id(session)))
  first = networks.filter(architecture="dnn:4")
  assert len(probes.complete(session, str(tmp_path), first, 2)) == 4
  rows = probes.complete(session, str(tmp_path), networks, 2)
  assert set(rows["architecture"]) == {"dnn:4", "dnn:5"} and len(rows) == 8
  parts = records_lib.parts(str(tmp_path), "probes")
  assert sorted(len(part) for _, part in parts) == [4, 4]
  again = probes.complete(session, str(tmp_path), networks, 2)
  assert again.equals(rows)
  with pytest.raises(config.ConfigError, match="no network trained with these"):
    other = networks.with_columns(run_id=pl.lit("another"))
    probes.complete(session, str(tmp_path), other, 2)
