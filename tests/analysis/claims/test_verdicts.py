"""Each claim follows the world that its records were drawn from."""

import polars as pl
import pytest

from minarch_jax import analysis
from minarch_jax.analysis import quantization
from minarch_jax.analysis.claims import verdicts
from minarch_jax.analysis.outcomes import outcomes
from minarch_jax.analysis.tables import by_difficulty
from minarch_jax.config import Config
from tests.analysis import ladder, simulated

CONFIG = Config(num_bootstrap=300)


VERDICTS = {"supported", "contradicted", "undecided"}


@pytest.fixture(scope="module")
def whole():
  """A study of the ladder with all arms, in which every claim is true."""
  world = ladder.World(
    sigma=0.004, half_depth=0.03, slope=-0.5, harder=0.6, free=0.85
  )
  return ladder.draw(world, 5, CONFIG, "curves confirm harder over")


@pytest.fixture(scope="module")
def rows(whole):
  return analysis.claims(whole, CONFIG)


def test_each_claim_is_one_row_with_an_interval_around_its_effect(rows):
  assert rows["claim"].to_list() == list(verdicts.CLAIMS)
  assert set(rows["verdict"]) <= VERDICTS
  for row in rows.iter_rows(named=True):
    assert row["low"] <= row["effect"] <= row["high"] and row["n"] > 0, row
    assert row["unit"] and row["rests_on"] and row["figure"], row
    assert row["design"] and 0 <= row["power"] <= 1, row


def test_claims_true_of_the_world_are_supported(rows):
  found = dict(rows.select("claim", "verdict").iter_rows())
  assert "contradicted" not in found.values(), found
  assert list(found.values()).count("supported") >= 6, found


def test_effects_lie_on_the_side_of_the_limit_that_verdicts_say(rows):
  decided = rows.filter(pl.col("verdict") != "undecided")
  assert decided["below"].any() and not decided["below"].all()
  for row in decided.iter_rows(named=True):
    above = (row["verdict"] == "supported") != row["below"]
    if above:
      assert row["limit"] <= row["low"] and row["limit"] < row["effect"], row
    else:
      assert row["high"] <= row["limit"] and row["effect"] < row["limit"], row


def test_arms_are_only_looked_at_by_their_claims(whole, rows):
  own = whole.networks.filter(arm="main")
  main = whole._replace(networks=own)
  alone = analysis.claims(main, CONFIG)
  names = ("effect", "low", "high", "n", "verdict")
  for claim in ("C1", "C4", "C5", "C7"):
    one, other = (
      r.filter(claim=claim).select(names).row(0) for r in (rows, alone)
    )
    assert one == other, claim
  missing = alone.filter(claim="C3")["note"][0]
  assert "the arm confirmation" in missing
  assert "the arm harder" in alone.filter(claim="C8")["note"][0]


def test_two_sizes_do_not_tell_three_regimes(whole):
  middle = 10**ladder.MIDDLE
  few = whole._replace(
    networks=whole.networks.filter(pl.col("params") > middle)
  )
  found = row_of("C2", few)
  assert found["verdict"] == "undecided" and "three sizes" in found["note"]


def test_the_limit_is_what_the_verdict_turns_on(whole, rows):
  limits = dict(rows.select("claim", "limit").iter_rows())
  assert limits["C6"] == CONFIG.claimed_redundancy and limits["C5"] == 0
  other = analysis.claims(whole, CONFIG.replace(governing_share=0.7))
  assert other["limit"][0] == 0.7 and limits["C1"] == 0.5


def test_fresh_seeds_judge_what_the_main_arm_chose(whole):
  """Fresh seeds that lose all at 60 % contradict, whatever the main says."""
  fresh = whole.networks.filter(arm="confirmation")["seed"].implode()
  spoiled = whole._replace(
    compression=whole.compression.with_columns(
      val_accuracy=pl.when(
        pl.col("seed").is_in(fresh) & (pl.col("sparsity") >= 0.5)
      )
      .then(0.1)
      .otherwise("val_accuracy")
    ),
    hits=whole.hits.clear(),
  )
  assert row_of("C6", whole)["verdict"] == "supported"
  assert row_of("C6", spoiled)["verdict"] == "contradicted"


def verdict(claim, **changes):
  world = simulated.World(**simulated.LEAN | changes)
  rows = analysis.claims(simulated.draw(world, 1), CONFIG)
  return rows.filter(pl.col("claim") == claim)["verdict"][0]


@pytest.mark.parametrize(
  ("claim", "expected", "changes"),
  [
    ("C3", "undecided", {"decades": (0.3, 3.0)}),
    ("C4", "contradicted", {"time_constant": 0.01}),
    ("C6", "contradicted", {"redundancy": 0.3, "redundancy_per_depth": 0.0}),
    ("C7", "contradicted", {"damage_slope": ((8, 0.0), (4, 0.01))}),
    ("C8", "contradicted", {"damage_harder": ((8, 0.0), (4, -0.01)),
                            "harder": 0.0}),
  ],
)  # fmt: skip
def test_a_claim_follows_its_world(claim, expected, changes):
  assert verdict(claim, **changes) == expected


def test_few_seeds_do_not_contradict_phases():
  """Seeds that learn fast and slow: every phase is there, none is shown."""
  fast, slow = (
    simulated.simulate(
      1, **simulated.LEAN | {"num_seeds": 2, "time_constant": constant}
    )
    for constant in (1.0, 4.0)
  )
  few = fast._replace(
    curves=pl.concat(
      [fast.curves.filter(seed=0), slow.curves.filter(pl.col("seed") > 0)]
    )
  )
  row = analysis.claims(few, CONFIG).filter(claim="C4").row(0, named=True)
  assert row["verdict"] == "undecided" and row["high"] == 1.0
  assert row["effect"] < 0.1


@pytest.mark.parametrize(
  ("num_seeds", "expected"), [(2, "undecided"), (5, "contradicted")]
)
def test_equal_curves_of_two_seeds_do_not_contradict(num_seeds, expected):
  """No rapid phase at all, which two equal seeds cannot show."""
  assert verdict("C4", time_constant=0.01, num_seeds=num_seeds) == expected


def row_of(claim, records):
  rows = analysis.claims(records, CONFIG)
  return rows.filter(claim=claim).row(0, named=True)


def test_damage_of_what_is_unstable_or_failed_decides_nothing(study, tables):
  stable = tables["regimes"].filter(pl.col("label") != "unstable")
  assert 0 < len(stable) < len(tables["regimes"])
  assert row_of("C7", study)["n"] == len(stable)
  # Whatever rounding does to unstable architectures and failed seeds.
  kept = ["dataset", "architecture"]
  odd = study.compression.join(stable, on=kept, how="anti")
  rest = study.compression.join(stable, on=kept, how="semi")
  odd = odd.with_columns(
    val_accuracy=pl.when(pl.col("bits") < 32)
    .then(pl.col("val_accuracy") / 2)
    .otherwise("val_accuracy")
  )
  spoiled = study._replace(compression=pl.concat([rest, odd]))
  for claim in ("C7", "C8"):
    names = ("effect", "low", "high", "n", "verdict")
    one, other = row_of(claim, study), row_of(claim, spoiled)
    assert [one[k] for k in names] == [other[k] for k in names], claim
  learned = quantization.paired_damage(study, CONFIG)
  failed = outcomes(study, CONFIG).filter("failed")
  who = ["dataset", "architecture", "seed"]
  assert len(failed) and learned.join(failed, on=who, how="semi").is_empty()


def test_difficulty_is_ordered_as_on_the_page(study):
  lucky = (pl.col("dataset") == "hard") & (pl.col("seed") == 0)
  best = lucky & (pl.col("architecture") == "cnn:12-12-12-12")
  records = study._replace(
    networks=study.networks.with_columns(
      val_accuracy=pl.when(best).then(1.0).otherwise("val_accuracy")
    )
  )
  order = by_difficulty(records.networks)
  assert order[0] == "hard" and row_of("C8", records)["note"].startswith(
    " < ".join(order)
  )


def test_families_of_one_or_two_have_no_slope_to_be_sure_of(study):
  """Two sizes of one family make a line, others centre to nothing."""
  names = [
    "dnn:11-11",
    "dnn:12-12-12-12",
    "cnn:12-12-12-12",
    "vit:p4-d48-l4-h1",
  ]
  few = type(study)(
    *(
      table.filter(
        pl.col("architecture").is_in(names), pl.col("dataset") == "easy"
      )
      for table in study
    )
  )
  row = row_of("C7", few)
  assert row["verdict"] == "undecided" and row["low"] is None
