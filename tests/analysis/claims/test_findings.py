"""What a verdict needs, and what would decide one."""

import numpy as np

from minarch_jax.analysis.claims import blocks, findings
from minarch_jax.config import Config

ASKED = findings.Question("unit", "table", "design")


def test_verdicts_need_the_whole_interval():
  assert findings.decided(0.1, 0.3, 0.0) == "supported"
  assert findings.decided(-0.3, -0.1, 0.0) == "contradicted"
  assert findings.decided(-0.1, 0.3, 0.0) == "undecided"
  assert findings.decided(np.nan, np.nan, 0.0) == "undecided"


def judged(value, over_blocks, over_cells, **changes):
  estimate = blocks.Estimate(value, over_blocks, over_cells, 20.0)
  return findings.judged(ASKED, estimate, 12, 0.02, Config(), **changes)


def test_an_effect_is_judged_with_power_and_a_remedy():
  found = judged(0.05, 1e-4, 0.0)
  assert found.verdict == "supported" and (found.low or 0) > 0
  assert judged(0.05, 1e-4, 0.0, falls=True).verdict == "contradicted"
  open_ = judged(0.005, 1e-4, 0.0)
  assert open_.verdict == "undecided" and (open_.power or 0) < 0.8
  assert "--num_seeds" in open_.note and "0.02" in open_.note
  precise = judged(0.0005, 1e-6, 0.0)
  assert (precise.power or 0) > 0.99 and "it is smaller" in precise.note
  scatter = judged(0.005, 0.0, 4e-4)
  assert "more architectures" in scatter.note


def test_power_of_twice_the_seeds_grows_only_with_what_seeds_add():
  seeds = blocks.Estimate(0.0, 1e-4, 0.0, 20.0)
  cells = blocks.Estimate(0.0, 0.0, 1e-4, 20.0)
  assert seeds.power(0.02, 0.95, 2.0) > seeds.power(0.02, 0.95) + 0.2
  assert cells.power(0.02, 0.95, 2.0) == cells.power(0.02, 0.95)
