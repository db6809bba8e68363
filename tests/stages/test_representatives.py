"""What is looked at more closely: around the minimal size of each family."""

import polars as pl

from minarch_jax import records
from minarch_jax.stages import representatives as choices
from tests import tiny_study
from tests.tiny_study import MEMBERS


def test_the_representatives_surround_the_minimal_size(studied):
  session = tiny_study.open_session(finetune="representatives")
  chosen = choices.representatives(session, str(studied), MEMBERS)
  assert set(chosen) <= set(MEMBERS) and len(chosen) == len(set(chosen))
  assert {a.family for a in chosen} == {"dnn", "cnn"}
  assert {a.depth for a in chosen if a.family == "dnn"} == {1, 2}


def test_all_are_all(studied):
  session = tiny_study.open_session(finetune="all")
  found = choices.representatives(session, str(studied), MEMBERS)
  assert found == MEMBERS


def test_another_data_set_in_the_directory_does_not_matter(studied, copy):
  """A copy of the networks, of which only the largest learn."""
  session = tiny_study.open_session(finetune="representatives")
  expected = choices.representatives(session, str(studied), MEMBERS)
  whole = records.read(str(copy)).networks
  largest = pl.col("params") == pl.col("params").max().over("family")
  for name, run in (("another", "other"), ("made-up", "another recipe")):
    rows = whole.with_columns(
      dataset=pl.lit(name),
      run_id=pl.lit(run),
      val_accuracy=pl.when(largest).then(1.0).otherwise(0.4),
    )
    records.write(str(copy), "networks", records.content_id(name), rows)
  assert choices.representatives(session, str(copy), MEMBERS) == expected
