"""Each calibration improves what it claims to improve."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minarch_jax import quantization
from minarch_jax.quantization import arithmetic, formats, layouts, tensors
from minarch_jax.quantization import calibration as calibrations


def span(x, name, calibration):
  """The range one column of numbers is coded over."""
  layout = layouts.Layout((0,))
  x = jnp.asarray(x, jnp.float32).reshape(-1, 1)
  _, low, high = tensors.calibrate(
    x, layout, formats.FORMATS[name], calibration, None
  )
  return float(low[0, 0, 0]), float(high[0, 0, 0])


def rounded(x, name, low, high):
  """Rounds x over one range, or over several in rows."""
  low, high = (
    jnp.asarray(bound, jnp.float32).reshape(-1, 1) for bound in (low, high)
  )
  x = jnp.asarray(x, jnp.float32).reshape(1, -1)
  y = arithmetic.round_trip(x, low, high, formats.FORMATS[name])
  return np.squeeze(np.asarray(y), 0) if len(y) == 1 else np.asarray(y)


@pytest.fixture(scope="module")
def heavy():
  """Mostly small numbers, a few very large: Student's t, 3 degrees."""
  return np.random.default_rng(0).standard_t(3, 4000).astype(np.float32)


@pytest.mark.parametrize("name", ["int4", "uint4", "nf4"])
def test_absmax_clips_nothing(heavy, name):
  low, high = span(heavy, name, "absmax")
  assert low <= heavy.min() and high >= heavy.max()
  assert high == np.abs(heavy).max() or name == "uint4"


@pytest.mark.parametrize("name", ["int4", "uint4"])
def test_percentile_clips_its_share(heavy, name):
  """... and rounds the rest more finely."""
  low, high = span(heavy, name, calibrations.make_percentile(99.0))
  clipped = np.mean((heavy < low) | (heavy > high))
  assert clipped == pytest.approx(0.01 if name == "int4" else 0.02, abs=0.001)
  inside = np.abs(heavy) < 2
  fine = rounded(heavy, name, low, high) - heavy
  coarse = rounded(heavy, name, *span(heavy, name, "absmax")) - heavy
  assert np.mean(fine[inside] ** 2) < 0.3 * np.mean(coarse[inside] ** 2)


@pytest.mark.parametrize("name", ["int4", "int2", "uint3", "nf4"])
def test_mse_finds_the_least_squared_error(heavy, name):
  """As good as any of a finer search's ranges, far better than absmax."""

  def error(low, high):
    squares = (rounded(heavy, name, low, high) - heavy[None]) ** 2
    return np.min(np.mean(squares, -1))

  full = np.array(span(heavy, name, "absmax"))
  found = error(*span(heavy, name, "mse"))
  shares = np.linspace(0.05, 1, 400)
  assert found <= 1.01 * error(*np.outer(full, shares))
  assert found < 0.5 * error(*full)


def test_mse_is_never_worse_than_absmax():
  x = np.random.default_rng(1).uniform(-1, 1, (9, 50)).astype(np.float32)
  for name in ("int8", "int2", "float8_e4m3", "binary"):
    errors = {}
    for rule in ("mse", "absmax"):
      y = quantization.fake_quantize({"kernel": x}, name, calibration=rule)
      errors[rule] = np.sum((np.asarray(y["kernel"]) - x) ** 2, 0)
    assert np.all(errors["mse"] <= errors["absmax"] * (1 + 1e-5))


def divergence(x, limit, levels, bins=1024):
  """KL divergence of clipped from coded numbers, in plain numpy."""
  full = np.abs(x).max()
  mass, edges = np.histogram(x, bins, (-full, full))
  centers = (edges[1:] + edges[:-1]) / 2
  inside = np.abs(centers) <= limit
  p, kept = np.where(inside, mass, 0.0), np.where(inside, mass, 0.0)
  p[inside.argmax()] += mass[centers < -limit].sum()
  p[bins - 1 - inside[::-1].argmax()] += mass[centers > limit].sum()
  peak = levels // 2
  codes = np.clip(np.round(centers / (limit / peak)), -peak, peak)
  q = np.zeros(bins)
  for code in np.unique(codes):
    here = (codes == code) & (kept > 0)
    if here.any():
      q[here] = kept[here].sum() / here.sum()
  q = (q + 1e-4) / (q + 1e-4).sum()
  p = p / p.sum()
  return np.sum(p[p > 0] * np.log(p[p > 0] / q[p > 0]))


def test_kl_keeps_more_of_the_distribution(heavy):
  """Against an independent reference; most of the searched ranges are worse."""
  full = np.abs(heavy).max()
  low, high = span(heavy, "int4", "kl")
  assert low == -high
  found = divergence(heavy, high, 15)
  others = [divergence(heavy, s * full, 15) for s in np.linspace(0.05, 1, 96)]
  assert found <= np.min(others) + 1e-3
  assert found < 0.7 * divergence(heavy, full, 15)


def test_mean_is_the_best_binary_scale():
  x = np.random.default_rng(2).normal(size=500).astype(np.float32)
  _, scale = span(x, "binary", "mean")
  assert scale == pytest.approx(np.abs(x).mean(), rel=1e-5)

  def error(scale):
    return np.mean((np.sign(x) * scale - x) ** 2)

  assert error(scale) < min(error(0.98 * scale), error(1.02 * scale))


def test_mean_is_ternary_weight_networks_scale():
  x = np.random.default_rng(3).normal(size=500).astype(np.float32)
  magnitude = np.abs(x)
  expected = magnitude[magnitude > 0.7 * magnitude.mean()].mean()
  assert span(x, "ternary", "mean")[1] == pytest.approx(expected, rel=1e-5)
  pruned = np.concatenate([x, np.zeros(700, np.float32)])
  assert span(pruned, "ternary", "mean")[1] == pytest.approx(expected, rel=1e-5)


def test_calibrations_trace_their_bits(heavy):
  """A searched range under traced bits is the static one."""
  tree = {"kernel": heavy[:200].reshape(40, 5)}
  traced = jax.jit(
    lambda p, bits: quantization.fake_quantize(p, bits, calibration="mse")
  )
  for bits in (2, 8):
    static = quantization.fake_quantize(tree, bits, calibration="mse")
    np.testing.assert_array_equal(
      traced(tree, bits)["kernel"], static["kernel"]
    )
