"""What a verdict needs, and what would decide one."""

import numpy as np

from minarch_jax.analysis.claims import findings


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
