"""A report is built again when it would differ, and only then."""

import os
import pathlib

import pytest

from minarch_jax import records, report
from minarch_jax.report import standing
from tests.report import studies

CONFIG = studies.CONFIG


@pytest.fixture(scope="module")
def study(tmp_path_factory):
  folder = tmp_path_factory.mktemp("standing")
  networks = studies.small(families=("dnn",), num_architectures=3)
  return studies.save(
    folder, studies.without_compression(networks), studies.STUDY
  )


def times(out):
  return {
    path: path.stat().st_mtime_ns
    for path in pathlib.Path(out, "report").rglob("*")
    if path.is_file()
  }


def test_a_report_stands_until_it_would_differ(study):
  built = report.build(study, CONFIG, "run")
  before = times(study)
  assert report.find(study, CONFIG) == built and built.run == "run"
  assert times(study) == before
  assert any("P_min" in text for _, text in built.summary)
  other = CONFIG.replace(eps_accuracy=0.03)
  assert not report.find(study, other)
  report.build(study, other)
  after = times(study)
  assert all(after[path] > time for path, time in before.items())
  assert not report.find(study, CONFIG)
  alone = report.find(study, other)
  assert alone and not alone.run  # no study ended with it


def test_a_study_is_its_choices_data_and_stages():
  run = standing.run_of(CONFIG, ["bytes"], {})
  for same in ({"out": "there"}, {"dry_run": True}, {"repair": True}):
    assert standing.run_of(CONFIG.replace(**same), ["bytes"], {}) == run
  others = {
    standing.run_of(CONFIG.replace(num_seeds=2), ["bytes"], {}),
    standing.run_of(CONFIG.replace(eps_accuracy=0.03), ["bytes"], {}),
    standing.run_of(CONFIG, ["other bytes"], {}),
    standing.run_of(CONFIG, ["bytes", "other bytes"], {}),
    standing.run_of(CONFIG, ["other bytes", "bytes"], {}),
    standing.run_of(CONFIG, ["bytes"], {"prune": False}),
  }
  assert len(others | {run}) == 7


def another_part(out):
  networks = records.read(out).networks
  other = networks.with_columns(seed=networks["seed"] + 100)
  records.write(out, "networks", "f" * 20, other)


def another_study(out):
  path = os.path.join(out, "study.json")
  records.write_json(path, {**records.read_json(path), "programs": 77})


@pytest.mark.parametrize("change", [another_part, another_study])
def test_what_a_report_is_made_of_is_what_it_reads(study, change):
  before = standing.sources_of(study, CONFIG)
  assert standing.sources_of(study, CONFIG) == before
  change(study)
  assert standing.sources_of(study, CONFIG) != before


@pytest.mark.parametrize("content", ['{"made_fr', "[]", '{"run": "run"}'])
def test_half_a_report_is_none(tmp_path, content):
  out = str(tmp_path)
  built = report.Built(
    str(tmp_path / "report" / "index.html"), [("an answer", "a line")], "run"
  )
  standing.leave(out, built, standing.sources_of(out, CONFIG))
  assert report.find(out, CONFIG) is None  # there is no page
  pathlib.Path(built.page).touch()
  assert report.find(out, CONFIG) == built
  (tmp_path / "report" / standing.FILE).write_text(content)
  assert report.find(out, CONFIG) is None
