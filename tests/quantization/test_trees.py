"""Laws of quantization over every format, granularity and calibration."""

import dataclasses
import functools
from unittest import mock

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minarch_jax import (
  architectures,
  config,
  leaves,
  models,
  quantization,
  registries,
)
from minarch_jax.architectures import Problem
from minarch_jax.quantization import calibration as calibrations
from minarch_jax.quantization import formats, layouts, rounding, trees
from minarch_jax.quantization.networks import files

FORMATS = list(quantization.FORMATS)
INTEGERS = [bits for bits in formats.widths() if 2 <= bits <= 8]
SCALED = [name for name in FORMATS if formats.FORMATS[name].scaled]
GRANULARITIES = ["tensor", "channel", "group:4"]
CALIBRATIONS = list(quantization.CALIBRATIONS)
# Every format in groups (with a remainder), where most can go wrong, and one
# of each kind in the others.
CASES = [(name, "group:4") for name in FORMATS]
CASES += [(n, g) for n in ("int4", "uint4") for g in ("tensor", "channel")]


def draw(seed=0):
  """A tree with every kind of leaf; some weights are exactly 0."""
  rng = np.random.default_rng(seed)

  def normal(*shape):
    values = rng.normal(size=shape) * 0.3
    return np.where(rng.random(shape) < 0.1, 0.0, values).astype(np.float32)

  return {
    "conv_0": {"kernel": normal(3, 3, 2, 5), "bias": normal(5)},
    "attention": {
      "query": {"kernel": normal(7, 2, 3), "bias": normal(2, 3)},
      "out": {"kernel": normal(2, 6, 7)},
    },
    "position": {"embedding": normal(9, 4)},
    "norm": {"scale": normal(4)},
  }


def draw_one(seed=0):
  """One kernel and its bias: enough for the laws of a single array."""
  return draw(seed)["conv_0"]


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@functools.cache
def fake(name, granularity, calibration=None):
  """One compiled rounding, shared between the laws."""
  return jax.jit(
    functools.partial(
      quantization.fake_quantize,
      bits=name,
      granularity=granularity,
      calibration=calibration,
    )
  )


@pytest.mark.parametrize("name, granularity", CASES)
def test_one_arithmetic(name, granularity):
  """Eager = jit = stored and back = one of a vmapped stack, bit for bit."""
  trees_of_seeds = [draw_one(seed) for seed in range(2)]
  stack = jax.tree.map(lambda *leaves: np.stack(leaves), *trees_of_seeds)
  options = {"bits": name, "granularity": granularity}
  stored = functools.partial(quantization.quantize, **options)
  rounds = functools.partial(quantization.fake_quantize, **options)
  both = jax.jit(lambda one, many: (stored(one), jax.vmap(rounds)(many)))
  for i, params in enumerate(trees_of_seeds):
    jitted, stacked = both(params, stack)
    alone = fake(name, granularity)(params)
    assert_equal(jax.tree.map(lambda leaf, i=i: leaf[i], stacked), alone)
  eager = stored(params)
  assert_equal(quantization.dequantize(eager), alone)
  assert_equal(jitted, eager)


@pytest.mark.parametrize(
  "name, calibration",
  [("int4", calibration) for calibration in CALIBRATIONS] + [("uint3", "mse")],
)
def test_one_arithmetic_for_every_calibration(name, calibration):
  params = draw_one()
  alone = fake(name, "channel", calibration)(params)
  eager = quantization.quantize(params, name, calibration=calibration)
  assert_equal(quantization.dequantize(eager), alone)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_traced_bits_equal_static(granularity):
  params = draw_one()
  traced = jax.jit(
    lambda p, bits: quantization.fake_quantize(p, bits, granularity)
  )
  for bits in [*INTEGERS, 32]:
    static = quantization.fake_quantize(params, bits, granularity)
    assert_equal(traced(params, bits), static)


def test_quantizers_of_a_study_are_known_and_have_one_meaning():
  lists = CALIBRATIONS, FORMATS, registries.METHODS
  names = [name for each in lists for name in each]
  assert len(set(names)) == len(names)
  assert set(registries.QUANTIZERS) < set(names)
  # What the study takes by flag is this list, live.
  with pytest.raises(config.ConfigError, match="did you mean 'absmax'"):
    config.Config(quantizers=("absmx",)).check()
  config.Config(quantizers=tuple(registries.QUANTIZERS)).check()


@pytest.mark.parametrize("whole", [True, False], ids=["entry", "function"])
def test_a_calibration_is_its_registry_line(whole):
  """Re-registered under its name, it does not find the old one's program."""
  params = {"kernel": np.linspace(-1, 1, 9, dtype=np.float32)[:, None]}
  for limit in (0.5, 0.25):

    def fixed(blocks, within, format, limit=limit):
      high = jnp.full_like(blocks[:, :1], limit)
      return -high, high

    entry = calibrations.Calibration(fixed) if whole else fixed
    with mock.patch.dict(registries.CALIBRATIONS, fixed=entry):
      assert "fixed" in registries.QUANTIZERS
      q = quantization.quantize(params, 4, calibration="fixed")
      rounds = rounding.make_rounder(
        [rounding.Rounding("int", "channel", "fixed")]
      )(params, 0, 4)
    assert np.abs(quantization.dequantize(q)["kernel"]).max() == limit
    assert np.abs(rounds["kernel"]).max() == limit


def test_a_format_is_its_registry_line(tmp_path):
  """Widths, files and bytes included."""
  levels = np.array([-1.0, 0.0, 0.5, 1.0], np.float32)
  toy = dataclasses.replace(formats.table(levels, 2), width=7)
  params = {"kernel": np.linspace(-1, 1, 9, dtype=np.float32)[:, None]}
  with mock.patch.dict(registries.FORMATS, toy=toy):
    assert "toy" in registries.QUANTIZERS and formats.name_of(7) == "toy"
    q = quantization.quantize(params, 7)
    path = str(tmp_path / "toy.safetensors")
    size = files.save_model(path, q)
    assert size == quantization.storage_bytes(params, "toy") == 3 + 4
    assert_equal(files.load_model(path), q)
    rounded = quantization.dequantize(q)["kernel"]
  assert set(np.unique(rounded)) == set(levels)


def test_rounder_holds_every_format_in_one_program():
  params = draw_one()
  roundings = [
    rounding.Rounding("int", "channel"),
    rounding.Rounding("int", "tensor", "mse"),
    *(rounding.Rounding(name, "group:4") for name in ("nf4", "binary")),
  ]
  rounder = jax.jit(rounding.make_rounder(roundings))
  for index, each in enumerate(roundings):
    name, granularity, calibration, _ = each
    expected = fake(3 if name == "int" else name, granularity, calibration)
    assert_equal(rounder(params, index, 3), expected(params))
  with pytest.raises(ValueError, match="int44"):
    rounding.make_rounder([rounding.Rounding("int44")])


def test_thirty_two_bits_is_the_identity():
  params = draw()
  assert quantization.quantize(params, 32) is not params
  assert_equal(quantization.quantize(params, 32), params)
  assert_equal(quantization.dequantize(params), params)


@pytest.mark.parametrize(
  "name, granularity", [c for c in CASES if c[0] in SCALED]
)
def test_error_is_at_most_half_a_step(name, granularity):
  """Inside the range; what is clipped becomes the nearest end."""
  params, format = draw_one(), formats.FORMATS[name]
  rounded = fake(name, granularity)(params)
  q = quantization.quantize(params, name, granularity)["kernel"]
  layout, shape = q.layout.blocks, q.values.shape

  def blocks(array):
    return np.asarray(layouts.to_blocks(jnp.asarray(array), layout))

  x, y = blocks(params["kernel"]), blocks(rounded["kernel"])
  scale = np.asarray(layouts.scale_to_blocks(q.scale, layout, shape))
  zero = np.zeros_like(scale)
  if q.zero_point is not None:
    codes = layouts.scale_to_blocks(q.zero_point, layout, shape)
    zero = np.asarray(codes, np.float32)
  low, high = (format.low - zero) * scale, (format.high - zero) * scale
  error = np.abs(np.clip(x, low, high) - y)
  assert np.all(error <= format.gap / 2 * (1 + 1e-5) * scale)
  if format.calibration == "absmax":
    # An integer zero point may move the range by half a step.
    slack = 1e-6 * high + (0.51 * scale if not format.symmetric else 0)
    assert np.all((x >= low - slack) & (x <= high + slack))


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_unscaled_floats_are_the_nearest(name):
  params = draw_one()
  info = jnp.finfo(jnp.dtype(name))

  def check(w, y):
    close = np.abs(w - y) <= np.abs(w) * float(info.eps) / 2 + float(info.tiny)
    assert np.all(close)

  jax.tree.map(check, params, fake(name, "channel")(params))


@pytest.mark.parametrize("name, granularity", CASES)
def test_idempotent(name, granularity):
  once = quantization.quantize(draw_one(), name, granularity)
  again = quantization.quantize(
    quantization.dequantize(once), name, granularity
  )

  def check(a, b):
    if not leaves.is_qtensor(a):
      return
    np.testing.assert_array_equal(a.values, b.values)
    if a.scale is not None:
      np.testing.assert_allclose(a.scale, b.scale, rtol=1e-6)

  jax.tree.map(check, once, again, is_leaf=leaves.is_qtensor)


@pytest.mark.parametrize("name, granularity", CASES)
def test_zeros_stay_exactly_zero(name, granularity):
  params = draw_one()
  params["kernel"][..., 1] = 0.0  # a channel of zeros
  rounded = fake(name, granularity)(params)
  jax.tree.map(
    lambda w, y: np.testing.assert_array_equal(y[w == 0], 0.0), params, rounded
  )
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(rounded))


@pytest.mark.parametrize("name", [n for n in SCALED if n != "float32"])
@pytest.mark.parametrize("value", [0.7, -0.7])
def test_constant_channels_are_exact(name, value):
  params = {"kernel": np.full((6, 3), value, np.float32)}
  rounded = quantization.fake_quantize(params, name)["kernel"]
  np.testing.assert_allclose(rounded, params["kernel"], rtol=1e-6)


def test_damage_is_monotone_in_bits():
  """Mean squared error falls with every bit, and granularity refines it."""
  params = [draw_one(seed) for seed in range(10)]

  def error(name, granularity):
    rounds = fake(name, granularity)
    squares = [
      np.mean((w - np.asarray(y)) ** 2)
      for p in params
      for w, y in zip(
        jax.tree.leaves(p), jax.tree.leaves(rounds(p)), strict=True
      )
    ]
    return np.mean(squares)

  for prefix in ("int", "uint"):
    errors = [error(f"{prefix}{b}", "group:4") for b in INTEGERS]
    assert errors == sorted(errors)
    assert 0 < errors[0] < 0.01 * errors[-1]
  assert error("ternary", "group:4") < error("int2", "group:4")
  assert error("ternary", "group:4") < error("binary", "group:4")

  assert error("int4", "channel") < error("int4", "tensor")
  # Made for normal numbers in large groups.
  assert error("nf4", "tensor") < error("int4", "tensor")
  assert error("float8_e4m3", "group:4") < error("float8_e5m2", "group:4")
  assert error("float16", "group:4") < error("bfloat16", "group:4")


@pytest.mark.parametrize("bits", INTEGERS)
def test_matches_a_reference(bits):
  """Scales are IEEE quotients; codes the nearest integers."""
  w = np.random.default_rng(bits).normal(size=(40, 6)).astype(np.float32)
  highest = np.float32(2 ** (bits - 1) - 1)
  scale = np.abs(w).max(0, keepdims=True) / highest
  q = quantization.quantize({"kernel": w}, bits)["kernel"]
  np.testing.assert_array_equal(q.scale, scale)
  steps = w.astype(np.float64) / scale
  np.testing.assert_array_equal(q.values, np.round(steps))
  assert q.values.dtype == np.int8 and q.bits == bits
  assert np.abs(np.asarray(q.values)).max() == highest


def test_asymmetric_uses_every_code():
  w = np.linspace(-0.2, 0.8, 256, dtype=np.float32)[:, None]
  q = quantization.quantize({"kernel": w}, "uint4")["kernel"]
  assert set(np.unique(q.values)) == set(range(-8, 8))
  symmetric = quantization.fake_quantize({"kernel": w}, "int4")["kernel"]
  asymmetric = quantization.fake_quantize({"kernel": w}, "uint4")["kernel"]
  assert np.abs(w - asymmetric).max() < 0.6 * np.abs(w - symmetric).max()


def test_channels_are_the_outputs():
  quantized = quantization.quantize(draw(), 8)
  shapes = {
    "/".join(path): q.scale.shape
    for path, q in leaves.named(quantized)
    if leaves.is_qtensor(q)
  }
  assert shapes == {
    "conv_0/kernel": (1, 1, 1, 5),
    "attention/query/kernel": (1, 2, 3),
    "attention/out/kernel": (1, 1, 7),
    "position/embedding": (1, 4),
  }


# A member, and a parent that is wider in every unit axis.
MEMBERS = {
  "dnn": ("dnn:6-5", "dnn:9-8"),
  "cnn": ("cnn:2-3", "cnn:5-4"),
  "vit": ("vit:p4-d8-l1-h2-m5-k4", "vit:p4-d12-l1-h3-m9-k6"),
}


SHAPE = (8, 8, 1)


# One leaf of each kind keeps the programs small.
LAYERS = ("hidden_1", "conv_1", "output", "query", "out", "position")


def padded_and_alone(family, roundings, masked):
  """Rounds a member inside its parent and alone by each of the roundings."""
  member, parent = (
    architectures.Architecture.parse(text) for text in MEMBERS[family]
  )
  spec, wide = member.spec(Problem(SHAPE, 3)), parent.spec(Problem(SHAPE, 3))
  rng = np.random.default_rng(1)
  params = traverse_util.unflatten_dict(
    {
      leaf.path: rng.normal(size=spec.shape(leaf)).astype(np.float32)
      for leaf in spec.leaves
    }
  )
  within = models.width_masks(wide, member.sizes(Problem(SHAPE, 3)))

  @jax.jit
  def rounds(params, within):
    return [
      quantization.fake_quantize(
        params,
        *r[:2],
        calibration=r[2],
        within=within,
        choose=lambda path: registries.is_weight(path) and path[-2] in LAYERS,
      )
      for r in roundings
    ]

  padded = rounds(models.pad(params, spec, wide), within if masked else None)
  for tree in padded:
    outside = jax.tree.map(
      lambda p, m: np.asarray(p)[~np.asarray(m)], tree, within
    )
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(outside))
  inside = [models.unpad(tree, spec, wide) for tree in padded]
  return inside, rounds(params, None)


@pytest.mark.parametrize("family", MEMBERS)
def test_padded_equals_alone(family):
  """A narrow network rounds the same inside a wider parent, bit for bit."""
  roundings = [
    ("int4", "channel", None),
    ("int4", "group:2", None),
    ("uint3", "tensor", None),
  ]
  assert_equal(*padded_and_alone(family, roundings, masked=False))


def test_padded_equals_alone_for_every_calibration():
  """Up to the order of sums."""
  roundings = [(n, "channel", c) for n in ("int4",) for c in CALIBRATIONS]
  roundings += [("ternary", "tensor", None), ("uint3", "group:5", "percentile")]
  inside, alone = padded_and_alone("dnn", roundings, masked=True)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), inside, alone
  )


@pytest.mark.parametrize("bits", [2, "binary", "float8_e4m3", "bfloat16", 32])
def test_the_gradient_goes_straight_through(bits):
  """1 where nothing is clipped, and the value is what it was, also mapped."""
  params = draw_one()

  def rounded(params, bits=bits):
    return quantization.fake_quantize(params, bits, "group:4")

  expected = quantization.dequantize(
    quantization.quantize(params, bits, "group:4")
  )
  ones = jax.tree.map(np.ones_like, params)
  value, tangent = jax.jvp(rounded, (params,), (ones,))
  assert_equal(value, expected)
  assert_equal(tangent, ones)
  slope = jax.grad(lambda p: rounded(p)["kernel"].sum())
  stack = jax.tree.map(lambda leaf: np.stack([leaf, -leaf]), params)
  for found in (slope(params), jax.jit(slope)(params)):
    np.testing.assert_array_equal(found["kernel"], ones["kernel"])
  mapped = jax.jit(jax.vmap(slope))(stack)["kernel"]
  np.testing.assert_array_equal(mapped, np.ones_like(stack["kernel"]))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("bits", [4, "nf4", "bfloat16", 32])
def test_a_tree_comes_back_in_its_own_type(bits, dtype):
  """The numbers of float32, rounded once to the type, also with traced bits."""
  params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), draw_one())
  wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)
  expected = quantization.dequantize(quantization.quantize(wide, bits))
  expected = jax.tree.map(lambda leaf: leaf.astype(dtype), expected)
  found = [
    quantization.dequantize(quantization.quantize(params, bits)),
    quantization.fake_quantize(params, bits),
  ]
  if isinstance(bits, int):
    found.append(jax.jit(quantization.fake_quantize)(params, jnp.int32(bits)))
  for tree in found:
    assert tree["kernel"].dtype == tree["bias"].dtype == dtype
    assert_equal(tree, expected)


@pytest.mark.parametrize("bits", [3, 32])
def test_the_gradient_stops_where_a_weight_is_clipped(bits):
  params = draw_one()

  def total(params, bits):
    rounded = quantization.fake_quantize(
      params, bits, "tensor", calibration=calibrations.make_percentile(90.0)
    )
    return rounded["kernel"].sum(), rounded["kernel"]

  slope = jax.grad(total, has_aux=True)
  static, rounded = slope(params, bits)
  traced, same = jax.jit(slope)(params, jnp.int32(bits))
  np.testing.assert_allclose(rounded, same, rtol=1e-6)
  clipped = np.abs(params["kernel"]) > np.abs(rounded).max()
  assert clipped.any() == (bits == 3)
  np.testing.assert_array_equal(static["kernel"], ~clipped)
  np.testing.assert_array_equal(traced["kernel"], ~clipped)


def test_within_matters_to_percentiles():
  """Padding must not count as numbers."""
  w = np.random.default_rng(0).normal(size=(10, 2)).astype(np.float32)
  padded = {"kernel": np.pad(w, ((0, 90), (0, 0)))}
  within = {"kernel": np.arange(100)[:, None] < 10}
  rule = calibrations.make_percentile(90.0)
  alone = quantization.fake_quantize({"kernel": w}, 4, calibration=rule)
  masked, blind = (
    quantization.fake_quantize(padded, 4, calibration=rule, within=m)
    for m in (within, None)
  )
  np.testing.assert_array_equal(masked["kernel"][:10], alone["kernel"])
  assert np.any(np.asarray(blind["kernel"][:10] != alone["kernel"]))


def test_bits_by_leaf():
  params = draw()
  bits = dict.fromkeys(trees.weight_names(params), 32)
  bits["conv_0/kernel"] = "nf4"
  rounded = quantization.fake_quantize(params, bits)
  expected = quantization.fake_quantize(params, "nf4")
  assert_equal(rounded["conv_0"], expected["conv_0"])
  assert_equal(rounded["attention"], params["attention"])


BAD = {
  "bits 7": (lambda p: quantization.quantize(p, 7), "bits 7 is not one of"),
  "bits 0": (lambda p: quantization.quantize(p, 0), "bits 0 is not one of"),
  "name": (lambda p: quantization.quantize(p, "nf5"), "did you mean 'nf4'"),
  "granularity": (
    lambda p: quantization.quantize(p, 8, "chanel"),
    "granularity 'chanel'",
  ),
  "group 0": (lambda p: quantization.quantize(p, 8, "group:0"), "positive"),
  "group": (
    lambda p: quantization.quantize(p, 8, "group:64"),
    "attention/out/kernel: a group of 64 is larger than its 6 inputs",
  ),
  "calibration": (
    lambda p: quantization.quantize(p, 8, calibration="mze"),
    "did you mean 'mse'",
  ),
  "percentile": (lambda p: calibrations.make_percentile(101), "101"),
  "nan": (
    lambda p: quantization.quantize({"kernel": jnp.array([[jnp.nan]])}, 8),
    "kernel: weights are NaN or infinite",
  ),
  "inf": (
    lambda p: quantization.fake_quantize({"kernel": jnp.array([[jnp.inf]])}, 8),
    "kernel: weights are NaN or infinite",
  ),
  "empty": (
    lambda p: quantization.quantize({"kernel": jnp.zeros((0, 3))}, 8),
    "kernel: cannot quantize an array of shape",
  ),
  "integers": (
    lambda p: quantization.quantize({"kernel": jnp.ones((2, 3), int)}, 8),
    "kernel: cannot quantize int32",
  ),
  "twice": (
    lambda p: quantization.quantize(quantization.quantize(p, 8), 8),
    "is quantized already",
  ),
  "masks": (
    lambda p: quantization.quantize(p, 8, within={"a": 1}),
    "within has",
  ),
  "mask's shape": (
    lambda p: quantization.quantize(
      {"kernel": jnp.ones((2, 3))}, 8, within={"kernel": jnp.ones(2)}
    ),
    "within: kernel has shape .2, 3., its mask .2,.",
  ),
  "nothing": (
    lambda p: quantization.quantize({"x": jnp.ones((2, 3))}, 8),
    "nothing can be quantized; the leaves are x",
  ),
  "truth": (lambda p: quantization.quantize(p, True), "bits True is not one"),
  "leaf": (
    lambda p: quantization.quantize(p, {"conv_0/kernl": 8}),
    "did you mean 'conv_0/kernel'",
  ),
  "missing": (
    lambda p: quantization.quantize(p, {"conv_0/kernel": 8}),
    "bits give no width to",
  ),
  "stacked": (
    lambda p: quantization.dequantize(
      jax.vmap(lambda k: quantization.quantize({"kernel": k}, 8))(
        jnp.ones((2, 3, 4))
      )
    ),
    "kernel: values of shape .2, 3, 4.* use jax.vmap",
  ),
  "traced": (
    lambda p: jax.jit(lambda b: quantization.quantize(p, b))(8),
    "use fake_quantize",
  ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
  call, message = BAD[case]
  with pytest.raises(ValueError, match=message):
    call(draw())
