"""What a results directory was made with."""

import dataclasses
import json
import os

import jax

import minarch_jax as ma
from minarch_jax import records
from minarch_jax.stages import provenance
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
