"""At most 5 % of studies decide falsely, for a claim or against it.

Worlds at the limit of each claim, with image noise, architectures that scatter
and arms that are chosen as a study chooses them; and worlds where a claim is
true, or its contrary, by as much as matters.
"""

from collections import Counter
import functools

import pytest

from minarch_jax.config import Config
from tests.analysis import ladder

CONFIG = Config(num_bootstrap=200)
SIZES = {"means": (0.80, 0.86, 0.90, 0.93), "sigma_small": 0.006}
PLATEAU = {"sigma_small": 0.006, "scatter": 0.0}

# At the limit: whatever is decided is decided falsely.
LIMITS = {
  "C1 half of the variance": SIZES | {"family": 0.546, "scatter": 0.0},
  "C1 no variance": PLATEAU | {"means": (0.9,) * 4},
  "C2 half overfit": {"sigma": 0.003, "over": (0.1, 0.3, 0.5)},
  "C2 half overfit at all sizes": {"sigma": 0.003, "over": (0.5,) * 3},
  "C3 as spread as may be": {"sigma": 0.02},
  "C5 no effect of depth": {},
  "C6 exactly free": {"free": 0.75, "half_scatter": 0.0},
  "C7 no effect of size": {"points": True},
  "C8 no effect of difficulty": {"slope": -0.4},
}

# The claim would be false: it must not be supported.
FALSE = {
  "C2 nothing is unstable": {"sigma": 0.003, "sigma_small": 0.02},
  "C2 all vary": {"sigma": 0.02, "over": (0.1, 0.5, 1.0)},
  "C3 no plateau": {"means": (0.3, 0.5, 0.7, 0.9), "sigma_small": 0.01},
  "C6 the best by luck": {"free": 0.72, "half_scatter": 0.02},
}

# The claim is true, or its contrary; what a study says of most.
TRUE = {
  "C1 supported": SIZES | {"family": 0.29},
  "C1 contradicted": SIZES | {"family": 0.95},
  "C2 supported": {"sigma": 0.004},
  "C2 contradicted": {"sigma": 0.004, "over": (0.1,) * 3},
  "C5 supported": {"half_depth": 0.03},
  "C5 contradicted": {"half_depth": -0.03},
  "C6 supported": {"free": 0.85, "half_scatter": 0.0},
  "C6 contradicted": {"free": 0.625, "half_scatter": 0.0},
  "C7 supported": {"slope": -0.6},
  "C7 contradicted": {"slope": 0.6},
  "C8 supported": {"slope": -0.4, "harder": 0.6},
  "C8 contradicted": {"slope": -0.4, "harder": -0.6},
}  # fmt: skip


@functools.cache
def verdicts(name, studies):
  changes = next(w[name] for w in (LIMITS, FALSE, TRUE) if name in w)
  world = ladder.World(**changes)
  rows = (ladder.judged(world, i, CONFIG, name[:2]) for i in range(studies))
  return Counter(row["verdict"] for row in rows)


@pytest.mark.parametrize("name", LIMITS)
def test_at_the_limit_little_is_decided(name):
  found = verdicts(name, 20)  # 5 of 20 have a chance of 0.3 % at 5 %
  assert found["supported"] + found["contradicted"] <= 4, found


@pytest.mark.parametrize("name", FALSE)
def test_false_claims_are_not_supported(name):
  assert verdicts(name, 12)["supported"] <= 3


@pytest.mark.parametrize("name", TRUE)
def test_what_is_so_by_much_is_found(name):
  found = verdicts(name, 8)
  expected = name.split()[1]
  assert found[expected] >= 5, found
  assert found[expected] + found["undecided"] == 8, found


@pytest.mark.slow
@pytest.mark.parametrize("name", LIMITS)
def test_at_most_5_percent_of_400_studies_decide_falsely(name):
  found = verdicts(name, 400)  # 29 of 400 have a chance of 2 % at 5 %
  assert max(found["supported"], found["contradicted"]) <= 20, found
  assert found["supported"] + found["contradicted"] <= 29, found


@pytest.mark.slow
@pytest.mark.parametrize("name", FALSE)
def test_at_most_5_percent_of_200_false_claims_are_supported(name):
  assert verdicts(name, 200)["supported"] <= 10
