"""What is read of the records."""

import polars as pl
import polars.testing

from minarch_jax import records as records_lib
from minarch_jax.report import reading
from tests.report import studies


def test_two_recipes_are_not_mixed_and_the_page_says_so():
  one = studies.small(families=("dnn",))
  few = studies.small(families=("dnn",), num_seeds=2, seed=1)
  other = [
    table.with_columns(run_id=pl.lit("another"), architecture=pl.lit("dnn:9"))
    for table in few
  ]
  both = records_lib.Records(
    *(pl.concat(pair) for pair in zip(one, other, strict=True))
  )
  found = reading.analyse(both, studies.CONFIG, {})
  assert found.tables["regimes"].equals(
    reading.analyse(one, studies.CONFIG, {}).tables["regimes"]
  )
  assert found.records.networks["run_id"].n_unique() == 1
  assert sum("left out" in line.text for line in found.summary) == 1
