"""One simulated study of three data sets, and all its tables."""

import pytest

from minarch_jax import analysis
from minarch_jax.config import Config
from tests.analysis import simulated


@pytest.fixture(scope="session")
def study():
  return simulated.simulate(**simulated.LEAN)


@pytest.fixture(scope="session")
def tables(study):
  return analysis.analyse(study, Config(num_bootstrap=300))
