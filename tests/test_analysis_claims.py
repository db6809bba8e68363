"""Claims, guidance, comparison, summary: what they say, what they refuse."""

import dataclasses
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from minarch_jax import analysis
from minarch_jax.analysis import findings, matching, recommendation, verdicts
from minarch_jax.config import Config, THRESHOLDS
from tests import simulated

CONFIG = Config(num_bootstrap=300)
LEAN = {
  "num_epochs": 20,
  "quant_granularities": ("channel",),
  "scope_factor": (("global", 1.0),),
}
VERDICTS = {"supported", "contradicted", "undecided"}


@pytest.fixture(scope="module")
def study():
  return simulated.simulate(**LEAN)


@pytest.fixture(scope="module")
def tables(study):
  return analysis.analyse(study, CONFIG)


def test_each_claim_is_one_row_with_an_interval_around_its_effect(tables):
  rows = tables["claims"]
  assert rows["claim"].to_list() == list(verdicts.CLAIMS)
  assert set(rows["verdict"]) <= VERDICTS
  for row in rows.iter_rows(named=True):
    assert row["low"] <= row["effect"] <= row["high"] and row["n"] > 0, row
    assert row["unit"] and row["rests_on"] and row["figure"], row


def test_claims_true_of_the_world_are_supported(tables):
  found = dict(tables["claims"].select("claim", "verdict").iter_rows())
  for claim in ("C2", "C3", "C4", "C5", "C7", "C8"):
    assert found[claim] == "supported", claim
  # The families differ in P_min, so at one size they differ in accuracy.
  assert found["C1"] == "contradicted"


def verdict(claim, **changes):
  world = simulated.World(
    **LEAN | {"datasets": ("easy", "hard"), "plateaus": (0.97, 0.85)} | changes
  )
  rows = analysis.claims(simulated.draw(world, 1), CONFIG)
  return rows.filter(pl.col("claim") == claim)["verdict"][0]


@pytest.mark.parametrize(
  ("claim", "expected", "changes"),
  [
    ("C1", "supported", {"harder": 0.0, "families": ("dnn",), "matched": 3,
                         "num_architectures": 48, "num_seeds": 10}),
    ("C3", "undecided", {"decades": (0.3, 3.0)}),
    ("C3", "undecided", {"sigma": 0.03}),
    ("C4", "contradicted", {"time_constant": 0.01}),
    ("C5", "contradicted", {"redundancy_per_depth": -0.1,
                            "redundancy": 0.8}),
    ("C6", "contradicted", {"redundancy": 0.3, "redundancy_per_depth": 0.0}),
    ("C7", "contradicted", {"damage_slope": ((8, 0.0), (4, 0.01))}),
    ("C8", "contradicted", {"damage_harder": ((8, 0.0), (4, -0.01))}),
  ],
)  # fmt: skip
def test_a_claim_follows_its_world(claim, expected, changes):
  assert verdict(claim, **changes) == expected


def test_known_tables_are_not_computed_again(study, tables):
  again = analysis.claims(study, CONFIG, **tables)
  assert again.equals(tables["claims"])


def test_verdicts_need_the_whole_interval():
  assert findings.decided(0.1, 0.3, 0.0) == "supported"
  assert findings.decided(-0.3, -0.1, 0.0) == "contradicted"
  assert findings.decided(-0.1, 0.3, 0.0) == "undecided"
  assert findings.decided(np.nan, np.nan, 0.0) == "undecided"


def test_seeds_that_would_decide():
  # Half width 2, distance 1: four times the seeds.
  assert "20 seeds" in findings.needed(1.0, -1.0, 3.0, 0.0, 5)
  assert "2 seeds" in findings.needed(1.0, np.nan, np.nan, 0.0, 1)
  assert "1000" in findings.needed(0.001, -1.0, 1.0, 0.0, 5)
  assert "no number" in findings.needed(0.0, -1.0, 1.0, 0.0, 5)


def test_matching_is_one_to_one_and_within_the_tolerance():
  a, b = np.array([100, 205, 1000]), np.array([104, 108, 210, 1200])
  assert matching.matched(a, b, 0.1) == [(0, 0), (1, 2)]
  assert matching.matched(a, b[:0], 0.1) == []


def test_every_result_records_the_thresholds_it_used(study):
  strict = dataclasses.replace(CONFIG, eps_sigma=0.013, confidence=0.9)
  narrow = study.compression.filter(sparsity=0.0).with_columns(
    activation_bits=pl.lit(8, pl.Int64)
  )
  other = study.compression.filter(sparsity=0.0, bits=4).with_columns(
    quantizer=pl.lit("nf4")
  )
  rows = pl.concat([study.compression, narrow, other])
  study = study._replace(compression=rows)
  for name, frame in analysis.analyse(study, strict).items():
    if name in ("redundancy",):
      continue
    used = [c for c in frame.columns if c in THRESHOLDS]
    assert used, name
    for column in used:
      expected = [getattr(strict, column)]
      assert frame[column].drop_nulls().unique().to_list() == expected


EDGES = {
  "one seed": {"num_seeds": 1},
  "two seeds": {"num_seeds": 2},
  "all failed": {"decades": (-3.0, -1.2)},
  "all diverged": {"decades": (-3.0, -1.2), "diverged_share": 1.0},
  "constant": {"sigma": 0.0, "noise": 0.0},
  "one architecture": {"num_architectures": 1, "decades": (1.0, 1.0)},
}


def check_runs(records):
  found = analysis.analyse(records, CONFIG)
  assert set(found["claims"]["verdict"]) <= VERDICTS
  for claim, effect in found["claims"].select("claim", "effect").iter_rows():
    assert effect is None or np.isfinite(effect), claim
  assert all(analysis.summary(records, CONFIG, **found))
  analysis.joint_damage(records, CONFIG)
  analysis.p_at(records, 0.8, CONFIG)
  return found


@pytest.mark.parametrize("edge", EDGES)
def test_everything_runs_on(edge):
  found = check_runs(
    simulated.simulate(
      datasets=("easy",), plateaus=(0.97,), **LEAN, **EDGES[edge]
    )
  )
  verdict = dict(found["claims"].select("claim", "verdict").iter_rows())
  if "failed" in edge or "diverged" in edge:
    assert "supported" not in verdict.values()
    assert "stable" in found["guidance"]["refused"][0]
    assert found["guidance"]["architecture"].to_list() == [None]
  if edge == "one seed":
    assert verdict["C3"] == verdict["C2"] == "undecided"
    assert "one seed" in found["guidance"]["refused"][0]
    assert set(found["minimal_parameters"]["status"]) == {"one seed"}


@pytest.mark.parametrize("table", ["networks", "curves", "compression"])
def test_everything_runs_without_a_table(study, table):
  check_runs(study._replace(**{table: getattr(study, table).clear()}))


def test_everything_runs_with_missing_cells(study):
  check_runs(type(study)(*(t.sample(fraction=0.6, seed=3) for t in study)))


def test_a_family_that_never_learns_does_not_spoil_the_others(study):
  broken = study.networks.with_columns(
    pl.when(pl.col("family") == "vit").then(True).otherwise("diverged")
    .alias("diverged"),
  )  # fmt: skip
  found = check_runs(study._replace(networks=broken))
  status = found["minimal_parameters"].filter(pl.col("family") != "vit")
  assert set(status["status"]) == {"bracketed"}


# --- guidance ----------------------------------------------------------------


def test_recommended_configurations_meet_the_request(study):
  frame = analysis.recommend(
    study, CONFIG, dataset="easy", target_accuracy=0.93, max_macs=20000
  )
  assert len(frame) == 10 and frame["rank"].to_list() == list(range(1, 11))
  assert (frame["unseen_low"] >= 0.93).all()
  assert (frame["unseen_low"] < frame["accuracy_low"]).all()
  assert (frame["macs"] <= 20000).all() and frame["bytes"].is_sorted()
  labels = analysis.regimes(study, CONFIG).filter(pl.col("dataset") == "easy")
  unstable = labels.filter(pl.col("label") == "unstable")["architecture"]
  assert not set(frame["architecture"]) & set(unstable)


def test_test_accuracy_never_changes_a_choice(study):
  options = {"dataset": "easy", "tolerance": 0.03}
  one = analysis.recommend(study, CONFIG, **options)
  spoiled = study._replace(
    networks=study.networks.with_columns(test_accuracy=pl.lit(0.5)),
    compression=study.compression.with_columns(
      test_accuracy=pl.col("bytes") / 1e9
    ),
  )
  other = analysis.recommend(spoiled, CONFIG, **options)
  assert one.drop("test_accuracy").equals(other.drop("test_accuracy"))


def test_a_budget_alone_asks_for_the_most_accurate(study):
  frame = analysis.recommend(study, CONFIG, dataset="easy", max_bytes=3000)
  assert frame["accuracy_low"].is_sorted(descending=True)
  assert (frame["bytes"] <= 3000).all()
  assert frame["target_accuracy"].null_count() == len(frame)


def test_pareto_front_is_not_beaten():
  frame = pl.DataFrame(
    {"bytes": [1, 2, 2, 3, 4], "accuracy": [0.5, 0.7, 0.6, 0.7, 0.9]}
  )
  assert recommendation.pareto(frame).to_list() == [
    True,
    True,
    False,
    False,
    True,
  ]


def test_networks_without_compression_are_offered_dense(study):
  plain = study._replace(compression=study.compression.clear())
  frame = analysis.recommend(plain, CONFIG, dataset="easy")
  assert set(frame["bits"]) == {32} and set(frame["sparsity"]) == {0.0}
  assert (frame["bytes"] == 4 * frame["params"]).all()


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({}, "name one of easy, hard, medium"),
    ({"dataset": "esay"}, "did you mean 'easy'"),
    ({"dataset": "hard", "target_accuracy": 0.9}, "surest is"),
    ({"dataset": "easy", "target_accuracy": 97}, "stands for 100 %"),
    ({"dataset": "easy", "tolerance": 0.01, "target_accuracy": 0.9}, "either"),
    ({"dataset": "easy", "max_bytes": 0}, "positive"),
    ({"dataset": "easy", "tolerance": 0.02, "max_bytes": 10}, "smallest is"),
  ],
)
def test_unsupported_requests_are_refused(study, options, message):
  with pytest.raises(ValueError, match=message):
    analysis.recommend(study, CONFIG, **options)


def test_guidance_covers_every_data_set(tables):
  assert set(tables["guidance"]["dataset"]) == {"easy", "medium", "hard"}
  assert tables["guidance"]["refused"].null_count() == len(tables["guidance"])


# --- comparison --------------------------------------------------------------


def test_records_equal_themselves(study):
  frame = analysis.compare(study, study, CONFIG)
  assert (frame["difference"] == 0).all() and (frame["low"] == 0).all()
  overall = frame.row(-1, named=True)
  assert overall["dataset"] == "" and overall["p_equivalent"] == 0.0


def test_a_shift_is_found_with_its_sign(study):
  better = study._replace(
    networks=study.networks.with_columns(pl.col("val_accuracy") + 0.01)
  )
  frame = analysis.compare(study, better, CONFIG)
  np.testing.assert_allclose(frame["difference"], 0.01)
  faster = study._replace(
    networks=study.networks.with_columns(pl.col("seconds") / 2)
  )
  row = analysis.compare(study, faster, CONFIG, metric="seconds").row(
    -1, named=True
  )
  assert row["difference"] == pytest.approx(-0.25)
  assert row["p_equivalent"] is None


def test_comparison_refuses_strangers(study):
  stranger = study._replace(
    networks=study.networks.with_columns(dataset=pl.lit("other"))
  )
  with pytest.raises(ValueError, match="share no"):
    analysis.compare(study, stranger, CONFIG)
  with pytest.raises(ValueError, match="val_acc"):
    analysis.compare(study, study, CONFIG, metric="val_acc")


# --- summary and layers ------------------------------------------------------


def test_summary_is_short_and_says_the_numbers():
  records = simulated.simulate(datasets=("easy",), plateaus=(0.97,))
  lines = analysis.summary(records, CONFIG)
  assert 5 <= len(lines) <= 10
  text = "\n".join(lines)
  for word in ("test accuracy", "P_min", "redundancy", "4 bits", "claims"):
    assert word in text
  one = analysis.summary(simulated.simulate(num_seeds=1, **LEAN), CONFIG)
  assert any("one seed" in line for line in one)


def test_summary_chooses_on_validation():
  records = simulated.handmade({100: [0.9, 0.91], 1000: [0.95, 0.94]})
  swapped = records._replace(
    networks=records.networks.with_columns(
      test_accuracy=1 - pl.col("val_accuracy")
    )
  )
  assert "dnn:1000 5.50%" in analysis.summary(swapped, CONFIG)[0]


def test_analysis_does_not_import_jax():
  code = (
    "import sys; sys.path.insert(0, 'tests'); import simulated; "
    "from minarch_jax import analysis; "
    "analysis.analyse(simulated.simulate(datasets=('easy',), num_seeds=2)); "
    "assert not [m for m in sys.modules if m.split('.')[0] in ('jax', 'flax')]"
  )
  subprocess.run([sys.executable, "-c", code], check=True)
