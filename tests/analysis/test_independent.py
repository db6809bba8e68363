"""What the records say, computed again from them by other, plain means.

No module of the analysis is used: the definitions of report/method.md in
polars, for one size of three shapes a step, whole folds and seeds that learn.
"""

import numpy as np
import polars as pl
import pytest
from scipy import optimize, stats

import minarch_jax as ma
from minarch_jax.config import Config
from tests.analysis import ladder

CONFIG = Config(num_bootstrap=100)
WORLDS = [ladder.World(slope=-0.5, over=(0.1, 0.5, 0.8)), ladder.World(slope=0)]


@pytest.fixture(scope="module", params=range(4))
def study(request):
  world = WORLDS[request.param % 2]
  return ladder.draw(world, request.param, CONFIG, "over")


def of_family(frame, family):
  return frame.filter(arm="main", family=family).sort("params", "seed")


def minimal(records, family):
  """The smallest size from which on accuracy is near the best and steady."""
  rows = of_family(records.networks, family)
  p, n = pl.col("val_accuracy"), pl.col("num_validation")
  half_decades = (pl.col("params").log10() * 2).floor()
  shapes = rows.group_by("params", step=half_decades).agg(
    mean=p.mean(),
    # Images alone: every seed has its own, hits are independent coins.
    spread=(p.var() - (p * (1 - p) / (n - 1)).mean()).clip(0),
  )
  steps = (
    shapes.sort("mean").group_by("step").agg(pl.all().last()).sort("params")
  )
  reached = steps["mean"].cum_max()
  behind = steps["mean"] < reached - CONFIG.eps_accuracy
  level = pl.select(pl.when(behind).then(reached).otherwise(steps["mean"]))
  fit = optimize.isotonic_regression(level.to_series().to_numpy()).x
  spread = optimize.isotonic_regression(
    steps["spread"].to_numpy(), increasing=False
  ).x
  good = (fit >= fit[-1] - CONFIG.eps_accuracy) & (
    spread <= CONFIG.eps_sigma**2
  )
  first = len(good) - int(np.argmin([*good[::-1], False]))
  return steps["params"].to_list()[first] if 0 < first < len(good) else None


def redundancy(records, architecture):
  """Where the mean drop, fitted increasing, reaches the margin."""
  rows = records.compression.filter(architecture=architecture, bits=32)
  dense = rows.filter(sparsity=0).group_by("seed").agg(pl.col("val_accuracy"))
  drops = (
    rows.join(dense.explode("val_accuracy"), on="seed", suffix="_dense")
    .group_by("sparsity")
    .agg((pl.col("val_accuracy_dense") - pl.col("val_accuracy")).mean())
    .sort("sparsity")
  )
  fit = optimize.isotonic_regression(drops["val_accuracy_dense"].to_numpy()).x
  over = int(np.argmax(fit > CONFIG.free_margin))
  x = drops["sparsity"].to_numpy()[over - 1 : over + 1]
  return np.interp(CONFIG.free_margin, fit[over - 1 : over + 1], x)


def damages(records):
  """Damage of every network at every number of bits."""
  rows = records.compression.filter(sparsity=0)
  keys = ["family", "architecture", "params", "seed"]
  dense = rows.filter(bits=32).unique(keys).select(*keys, "val_accuracy")
  return rows.filter(pl.col("bits") < 32).join(dense, on=keys).with_columns(
    damage=pl.col("val_accuracy_right") - pl.col("val_accuracy")
  )  # fmt: skip


def slope(rows):
  """Least squares along log10 P, a level per family, of every seed (each has a
  fold of its own); with the two parts of its variance."""
  wide = rows.pivot("seed", index=["family", "params"], values="damage")
  y = wide.drop("family", "params").to_numpy()
  x = np.c_[np.log10(wide["params"]), wide["family"].to_dummies()]
  fit = np.linalg.inv(x.T @ x) @ x.T
  rest = y.mean(1) - x @ (fit @ y.mean(1))
  leverage = np.diag(x @ fit)
  folds = np.var(fit[0] @ y, ddof=1) / y.shape[1]
  shapes = ((fit[0] * rest) ** 2 / (1 - leverage)).sum()
  w = fit[0] ** 2
  spare = max((len(y) - x.shape[1]) * w.sum() ** 2 / len(y) / (w**2).sum(), 1)
  freedom = (folds + shapes) ** 2 / (
    folds**2 / (y.shape[1] - 1) + shapes**2 / spare
  )
  half = np.sqrt(folds + shapes) * stats.t.ppf(0.975, freedom)
  value = fit[0] @ y.mean(1)
  return value, value - half, value + half


def stable(records):
  return ma.regimes(records, CONFIG).filter(pl.col("label") != "unstable")


def test_p_min(study):
  found = ma.minimal_parameters(study, CONFIG)
  expected = [minimal(study, family) for family in found["family"]]
  assert found["p_min"].to_list() == expected
  assert sum(p is not None for p in expected) > 1


def test_redundancy(study):
  found = ma.pruning_phases(study, CONFIG)
  expected = [redundancy(study, name) for name in found["architecture"]]
  np.testing.assert_allclose(found["redundancy"], expected, atol=1e-9)
  assert 0.2 < np.mean(expected) < 0.95


def test_damage(study):
  found = ma.quantization_damage(study, CONFIG)
  expected = damages(study).group_by("architecture", "bits").agg(
    pl.col("damage").mean()
  )  # fmt: skip
  both = found.join(expected, on=["architecture", "bits"], suffix="_expected")
  assert len(both) == len(found) == 36 * len(ladder.World().damage)
  np.testing.assert_allclose(both["damage"], both["damage_expected"])


def test_small_models_suffer_more(study):
  """C7."""
  row = ma.claims(study, CONFIG).row(6, named=True)
  bits = int(row["note"].split()[0])
  names = stable(study)["architecture"].to_list()
  rows = damages(study).filter(pl.col("architecture").is_in(names), bits=bits)
  ends = slope(rows)
  np.testing.assert_allclose([row[k] for k in ("effect", "low", "high")], ends)
  verdict = {(-1, -1): "supported", (1, 1): "contradicted"}
  signs = tuple(int(np.sign(end)) for end in ends[1:])
  assert row["verdict"] == verdict.get(signs, "undecided")


def test_the_share_that_overfits(study):
  """C2."""
  row = ma.claims(study, CONFIG).row(1, named=True)
  curves = study.curves.sort("epoch").group_by("architecture", "seed").agg(
    rise=pl.col("val_loss").last() / pl.col("val_loss").min() - 1
  )  # fmt: skip
  noisy = study.networks.filter(arm="overfitting").join(
    curves, on=["architecture", "seed"]
  )
  largest = noisy.filter(pl.col("params") == pl.col("params").max())
  k = int((largest["rise"] > CONFIG.overfit_rise).sum())
  ends = stats.binomtest(k, len(largest)).proportion_ci(0.95, "exact")
  found = [row[name] for name in ("effect", "low", "high")]
  np.testing.assert_allclose(found, [k / len(largest), ends.low, ends.high])
