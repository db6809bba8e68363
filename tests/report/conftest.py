"""One study read, and one report built, for every test of the report."""

import pathlib

import pytest

from minarch_jax import report
from minarch_jax.report import reading
from tests.report import studies


@pytest.fixture(scope="session")
def found() -> reading.Reading:
  return reading.analyse(
    studies.small(),
    studies.CONFIG,
    studies.STUDY,
    studies.layered(studies.small()),
  )


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp("built")
  out = studies.save(
    folder, studies.small(), studies.STUDY, studies.layered(studies.small())
  )
  return pathlib.Path(report.build(out, studies.CONFIG).page).parent


@pytest.fixture(scope="session")
def whole() -> reading.Reading:
  """Everything that can be measured was."""
  records = studies.complete()
  study = studies.STUDY | {"packs": [studies.PACK]}
  return reading.analyse(
    records, studies.CONFIG, study, studies.layered(records)
  )
