"""What study.json says a results directory was made with."""

import types

import minarch_jax as ma
from minarch_jax.config import Config
from minarch_jax.stages import provenance


def test_it_names_the_version_of_the_package(digits):
  session = types.SimpleNamespace(config=Config(), dataset=digits, programs=[])
  found = provenance.describe(session, [])  # pyright: ignore
  assert found["versions"]["minarch_jax"] == ma.__version__
