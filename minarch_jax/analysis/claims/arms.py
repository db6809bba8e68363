"""The arms of a study: which networks answer which claim.

| arm | networks | claims |
|---|---|---|
| main | the grid | all |
| confirmation | fresh seeds of what the main arm chose | C3, C6 |
| overfitting | noisy labels, trained longer | C2 |
| harder | a second, harder set of the same images | C8 |

An arm that a study does not have is empty; a claim that needs it says so.
"""

import polars as pl

from minarch_jax import records as records_lib
from minarch_jax.analysis import tables
from minarch_jax.records import Records

CONFIRMATION = "confirmation"
OVERFITTING = "overfitting"
HARDER = "harder"


def of(records: Records, arm: str) -> Records:
  """Takes the records of one arm.

  Every analysis looks at the main arm of what it is given, so the networks of
  the arm are called that here.
  """
  own = tables.of_arm(records, arm)
  networks = own.networks.with_columns(arm=pl.lit(records_lib.MAIN))
  return own._replace(networks=networks)
