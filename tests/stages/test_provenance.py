"""What a results directory was made with."""

from concurrent import futures
import dataclasses
import json
import os

import jax

import minarch_jax as ma
from minarch_jax import records
from minarch_jax.architectures import Architecture
from minarch_jax.engine import packs
from minarch_jax.engine.costs import Machine
from minarch_jax.stages import mixing, provenance
from tests import tiny_study
from tests.tiny_study import CONFIG


def test_the_description_says_what_made_the_results(studied):
  found = records.read_json(os.path.join(studied, "study.json"))
  config = dataclasses.asdict(CONFIG.replace(out=str(studied)))
  assert found["config"] == json.loads(json.dumps(config))
  assert found["versions"]["jax"] == jax.__version__
  assert found["versions"]["minarch_jax"] == ma.__version__
  assert len(found["devices"]) == 8
  sizes = {"train": 52, "validation": 13, "test": 11}
  assert found["datasets"]["made-up"].items() >= sizes.items()
  assert {line["stage"] for line in found["packs"]} == {"train", "compress"}
  assert all(line["run_seconds"] > 0 for line in found["packs"])


def test_statistics_are_added_to_what_is_there(copy):
  before = records.read_json(str(copy / "study.json"))
  provenance.write(tiny_study.open_session(), str(copy), [{"stage": "train"}])
  after = records.read_json(str(copy / "study.json"))
  assert after["packs"] == [*before["packs"], {"stage": "train"}]


def test_a_data_set_is_told_that_nothing_was_run_on(copy):
  path = str(copy / "study.json")
  before = records.read_json(path)
  config = CONFIG.replace(out=str(copy))
  session = tiny_study.open_session(config)
  provenance.write(session, str(copy), [], config)
  same = records.read_json(path)
  assert same["packs"] == before["packs"]
  left = {k: v for k, v in before.items() if k != "datasets"}
  records.write_json(path, left)
  provenance.write(session, str(copy), [], config)
  assert records.read_json(path)["datasets"] == before["datasets"]


def test_the_configuration_of_the_study_is_told(copy):
  config = CONFIG.replace(datasets=("made-up",), dataset="digits")
  provenance.write(tiny_study.open_session(), str(copy), [], config)
  found = records.read_json(str(copy / "study.json"))["config"]
  assert found["datasets"] == ["made-up"] and "dataset" not in found


def test_no_line_is_lost_where_several_write(copy):
  session = tiny_study.open_session()
  before = records.read_json(str(copy / "study.json"))["packs"]

  def write(number):
    provenance.write(session, str(copy), [{"stage": str(number)}])

  with futures.ThreadPoolExecutor(8) as pool:
    list(pool.map(write, range(8)))
  after = records.read_json(str(copy / "study.json"))["packs"]
  assert {line["stage"] for line in after[len(before) :]} == set("01234567")


def test_all_plan_by_the_machine_of_the_first(tmp_path):
  machines = [Machine.of("cpu", {"run dnn": 1 + i / 7}) for i in range(8)]

  def agreed(own):
    session = dataclasses.replace(tiny_study.open_session(), machine=own)
    return provenance.agreed(session, str(tmp_path), "id", {}).machine

  with futures.ThreadPoolExecutor(8) as pool:
    found = list(pool.map(agreed, machines))
  assert set(found) == {found[0]}
  assert found[0].devices == jax.local_device_count()
  assert dataclasses.replace(found[0], devices=0) in machines


def test_plans_are_for_the_devices_that_a_directory_was_begun_on(
  tmp_path, monkeypatch
):
  members = [Architecture.parse(f"dnn:{width}") for width in range(3, 400, 9)]

  def planned(devices, out):
    monkeypatch.setattr(jax, "local_device_count", lambda: devices)
    session = tiny_study.open_session(num_epochs=100)
    session = mixing.agreed(session, str(tmp_path / out))
    return packs.plan(session, members, range(50))

  begun = planned(1, "a")
  assert planned(64, "b") != begun  # or else this would say nothing
  assert planned(64, "a") == begun
