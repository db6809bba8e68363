"""Guidance: what is offered meets the request; what cannot be is refused."""

import polars as pl
import pytest

from minarch_jax import analysis
from minarch_jax.analysis import recommendation
from minarch_jax.config import Config

CONFIG = Config(num_bootstrap=300)


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


def test_a_budget_that_does_not_exist_is_told(study):
  with pytest.raises(TypeError, match="did you mean 'max_bytes'"):
    analysis.recommend(study, CONFIG, dataset="easy", max_byte=100)
