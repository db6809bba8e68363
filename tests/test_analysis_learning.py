"""Regimes, minimal sizes and convergence phases on records with known truth."""

import dataclasses

import numpy as np
import polars as pl
from polars import testing
import pytest

from minarch_jax import analysis
from minarch_jax.analysis import convergence, judgement, labels, tables
from minarch_jax.config import Config
from tests import simulated

CONFIG = Config(num_bootstrap=300)
GOOD = [0.96, 0.97, 0.965, 0.97, 0.96]


def regime(accuracy, **options):
  records = simulated.handmade({100: accuracy}, **options)
  return analysis.regimes(records, CONFIG).row(0, named=True)


@pytest.mark.parametrize(
  ("accuracy", "expected", "stuck"),
  [
    (GOOD, "learning", 0),
    ([*GOOD[:4], 0.11], "unstable", 1),  # stuck at chance
    ([*GOOD[:4], 0.149], "unstable", 1),  # significant, but below the margin
    ([*GOOD[:4], 0.90], "unstable", 0),  # varies too much
    ([0.5] * 5, "learning", 0),
  ],
)
def test_label_of_an_architecture(accuracy, expected, stuck):
  row = regime(accuracy)
  assert (row["label"], row["stuck"]) == (expected, stuck)
  assert row["p_unstable"] == stuck / 5
  assert row["p_unstable_low"] <= row["p_unstable"] <= row["p_unstable_high"]
  assert row["eps_sigma"] == CONFIG.eps_sigma


def test_chance_needs_significance_on_few_images():
  assert regime([0.2] * 5, num_validation=5000)["stuck"] == 0
  assert regime([0.2] * 5, num_validation=20)["stuck"] == 5


def test_divergence_is_told_from_being_stuck():
  row = regime([0.1] * 5, diverged=True)
  assert (row["diverged"], row["stuck"], row["label"]) == (5, 0, "unstable")


@pytest.mark.parametrize(
  ("losses", "expected"),
  [
    ([0.9, 0.5, 0.52], "learning"),
    ([0.9, 0.5, 0.53], "overfitting"),
    ([0.5, 0.9, 0.5], "learning"),  # the end is what counts
  ],
)
def test_overfitting_is_a_rise_from_the_minimum(losses, expected):
  assert regime(GOOD, losses=losses)["label"] == expected


def test_a_rise_of_both_losses_is_not_overfitting():
  records = simulated.handmade({100: GOOD}, losses=[0.9, 0.5, 0.6])
  rising = records.curves.with_columns(train_loss=pl.col("epoch") * 0.1)
  frame = analysis.regimes(records._replace(curves=rising), CONFIG)
  assert frame["label"].to_list() == ["learning"]


def test_labels_move_with_their_thresholds():
  row = regime([0.96, 0.93, 0.96, 0.93, 0.96])  # deviation 0.0164
  assert row["label"] == "learning" == row["label_doubled"]
  assert row["label_halved"] == "unstable"
  strict = dataclasses.replace(CONFIG, eps_sigma=0.01)
  records = simulated.handmade({100: [0.96, 0.93, 0.96, 0.93, 0.96]})
  assert analysis.regimes(records, strict)["label"][0] == "unstable"


def test_without_curves_overfitting_cannot_be_said():
  row = regime(GOOD)
  assert row["without_curve"] == 5 and row["n_seeds"] == 5


STEP = {
  100: [0.3, 0.9, 0.1, 0.4, 0.5],
  300: [0.8, 0.85, 0.82, 0.81, 0.84],
  1000: GOOD,
  3000: GOOD[::-1],
  10000: GOOD,
}


def p_min(accuracy, **options):
  records = simulated.handmade(accuracy, **options)
  return analysis.minimal_parameters(records, CONFIG).row(0, named=True)


def test_p_min_is_the_first_size_from_which_all_are_good():
  row = p_min(STEP)
  assert (row["status"], row["p_min"], row["p_below"]) == (
    "bracketed",
    1000,
    300,
  )
  assert row["architecture"] == "dnn:1000"
  assert 300 < row["p_min_low"] < 1000 == row["p_min_high"]
  assert row["plateau"] == pytest.approx(0.965)


def test_an_unstable_large_network_moves_p_min_beyond_the_grid():
  row = p_min(STEP | {30000: [0.97, 0.97, 0.5, 0.97, 0.2]})
  assert row["status"] == "above grid" and row["p_min"] is None


def test_the_frontier_forgives_a_bad_shape_of_matched_size():
  row = p_min(STEP | {3100: [0.2] * 5, 980: [0.5] * 5})
  assert row["p_min"] == 1000


@pytest.mark.parametrize(
  ("accuracy", "status"),
  [
    ({p: GOOD for p in (100, 1000, 10000)}, "below grid"),
    ({p: [0.1] * 5 for p in (100, 1000, 10000)}, "above grid"),
    ({p: [0.96] for p in (100, 1000)}, "one seed"),
  ],
)
def test_p_min_is_not_a_number_where_the_grid_does_not_reach(accuracy, status):
  row = p_min(accuracy)
  assert row["status"] == status and row["p_min"] is None


def test_p_learn_and_p_at_follow_their_own_definitions():
  records = simulated.handmade(STEP)
  learn = analysis.minimal_parameters(records, CONFIG)["p_learn"][0]
  assert 90 < learn < 400  # one of five seeds fails at 100, none above
  at = analysis.p_at(records, 0.8, CONFIG).row(0, named=True)
  assert at["p"] == 300 and at["p_low"] < 300
  with pytest.raises(ValueError, match="1.5"):
    analysis.p_at(records, 1.5, CONFIG)


def test_estimates_do_not_depend_on_the_order_of_rows():
  records = simulated.simulate(datasets=("easy",), families=("dnn",))
  shuffled = type(records)(
    *(t.sample(fraction=1, shuffle=True, seed=1) for t in records)
  )
  for make in (
    analysis.regimes,
    analysis.minimal_parameters,
    analysis.convergence_phases,
    analysis.regime_boundaries,
  ):
    testing.assert_frame_equal(
      make(records, CONFIG), make(shuffled, CONFIG), rel_tol=1e-9
    )
    assert make(records, CONFIG).equals(make(records, CONFIG))


def test_missing_seeds_are_no_obstacle():
  records = simulated.simulate(datasets=("easy",), families=("dnn",))
  few = records._replace(networks=records.networks.sample(fraction=0.7, seed=0))
  row = analysis.minimal_parameters(few, CONFIG).row(0, named=True)
  assert row["status"] == "bracketed"
  assert row["p_min_low"] < 1000 < row["p_min_high"]


def test_boundaries_of_known_regimes():
  world = simulated.World(
    datasets=("easy",), families=("cnn",), num_architectures=40
  )
  records = simulated.draw(world, 3)
  frame = analysis.regime_boundaries(records, CONFIG)
  first, second = frame.sort("p").iter_rows(named=True)
  assert first["boundary"] == "unstable|learning"
  truth = 10 ** (simulated.centre(world, "easy", "cnn") + world.overfit_above)
  assert second["p_low"] < truth < second["p_high"]
  assert first["p_high"] < second["p_low"]
  by_depth = analysis.regime_boundaries(
    records, CONFIG, by=("dataset", "family", "depth")
  )
  assert by_depth["depth"].unique().sort().to_list() == [1, 2, 4]


def test_change_points_partition_the_epochs():
  accuracy = np.array(
    [
      [0.1, 0.1, 0.5, 0.9, 0.94, 0.95, 0.949],
      [0.1, 0.11, 0.1, 0.12, 0.1, 0.1, 0.1],
      [0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9],
    ]
  )
  ends = convergence.change_points(
    accuracy, np.full(3, 0.1), np.full(3, 0.15), CONFIG
  )
  assert ends.tolist() == [[2, 3, 5], [7, 7, 7], [0, 0, 0]]


def test_convergence_phases_of_known_curves():
  world = simulated.World(
    datasets=("easy",), families=("dnn",), num_seeds=8, num_epochs=40
  )
  frame = analysis.convergence_phases(simulated.draw(world, 0), CONFIG)
  big = frame.filter(pl.col("params") > 5000)
  epochs = np.arange(1, 41)
  curve = simulated.true_curve(world, 0.97, epochs)
  ends = convergence.change_points(
    curve[None], np.array([0.1]), np.array([0.15]), CONFIG
  )[0]
  lengths = np.diff(ends, prepend=0, append=40)
  for phase, length in zip(convergence.PHASES, lengths, strict=True):
    assert (big[f"{phase}_low"] - 1 <= length).all(), phase
    assert (big[f"{phase}_high"] + 1 >= length).all(), phase
  total = frame.select(pl.sum_horizontal(convergence.PHASES)).to_series()
  assert (total.filter(frame["n_left"] == 8) - 40).abs().max() < 1e-9
  never = frame.filter(pl.col("n_left") == 0)
  assert (never["chance"] == 40).all() and never["rapid"].is_null().all()


def test_one_recipe_keeps_the_larger_and_says_so():
  records = simulated.simulate(datasets=("easy",), families=("dnn",))
  other = records._replace(
    networks=records.networks.head(7).with_columns(run_id=pl.lit("other"))
  )
  both = type(records)(
    *(pl.concat([a, b]) for a, b in zip(records, other, strict=True))
  )
  kept, notes = tables.one_recipe(both)
  assert len(kept.networks) == len(records.networks)
  assert len(notes) == 1 and "easy" in notes[0] and "1 other" in notes[0]
  assert tables.one_recipe(records) == (records, [])


def test_curves_of_unequal_length_are_all_judged():
  records = simulated.simulate(datasets=("easy",), families=("dnn",))
  cut = records.curves.filter((pl.col("epoch") <= 20) | (pl.col("seed") != 2))
  rises = judgement.loss_rises(cut)
  assert len(rises) == len(judgement.loss_rises(records.curves))


def test_two_rows_of_one_epoch_are_refused():
  records = simulated.handmade({100: GOOD}, losses=[0.9, 0.5])
  with pytest.raises(ValueError, match="share one network and epoch"):
    judgement.loss_rises(pl.concat([records.curves, records.curves]))


def test_size_classes_begin_where_the_tolerance_ends():
  params = np.array([100, 105, 110, 111, 200, 219])
  assert tables.size_classes(params, 0.1).tolist() == [0, 0, 0, 1, 2, 2]


def test_scaled_thresholds_stay_shares():
  doubled = labels.scaled(dataclasses.replace(CONFIG, max_failed=0.8), 2.0)
  assert doubled.max_failed == 1.0
  assert doubled.overfit_rise == 2 * CONFIG.overfit_rise
