"""A million networks, twenty million epochs: 60 seconds, 4 GiB, two cores."""

import json
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from minarch_jax import records
from tests import simulated

ANALYSE = """
import json, resource, sys, time
from minarch_jax import analysis, records

start = time.perf_counter()
tables = records.read(sys.argv[1])
found = analysis.analyse(tables)
print(json.dumps({
  "seconds": time.perf_counter() - start,
  "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
  "networks": len(tables.networks), "curves": len(tables.curves),
  "rows": {name: len(frame) for name, frame in found.items()},
}))
"""


@pytest.mark.slow
def test_analysis_of_a_million_networks(tmp_path):
  world = simulated.World(num_architectures=1610, num_seeds=70, num_epochs=20)
  for i, dataset in enumerate(world.datasets):
    for family in world.families:
      part = simulated.World(
        datasets=(dataset,),
        families=(family,),
        plateaus=(world.plateaus[i],),
        num_architectures=1610,
        num_seeds=70,
        num_epochs=20,
      )
      rng = np.random.default_rng(i)
      networks = simulated._networks(part, rng)
      curves = simulated._curves(part, networks, rng)
      for name, frame in (("networks", networks), ("curves", curves)):
        frame = frame.select(pl.col(list(records.SCHEMAS[name])))
        records.write(str(tmp_path), name, f"{dataset}-{family}", frame)
  done = subprocess.run(
    [sys.executable, "-c", ANALYSE, str(tmp_path)],
    check=True,
    capture_output=True,
    text=True,
    env={"POLARS_MAX_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"},
  )
  found = json.loads(done.stdout)
  assert found["networks"] >= 1_000_000 and found["curves"] >= 20_000_000
  assert found["rows"]["regimes"] == 9 * 1610
  assert found["seconds"] < 60, found
  assert found["gib"] < 4, found
