"""The table of layouts: what was measured wins, what is asked for wins more."""

import json
import re

import jax
import numpy as np
import pytest

from minarch_jax.architectures import Architecture
from minarch_jax.config import Config, ConfigError
from minarch_jax.engine import packs, population
from minarch_jax.engine import session as sessions
from minarch_jax.engine.planning import Pack


@pytest.fixture
def table(tmp_path, monkeypatch):
  """Where a test keeps measured layouts, out of the user's own cache."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  population._measured.cache_clear()
  path = tmp_path / "minarch_jax" / "mapping.json"
  path.parent.mkdir()
  yield path
  population._measured.cache_clear()


def layout(family, **flags):
  found = population.mapping(Config().replace(**flags), family)
  return found.seeds, found.members, found.convolution


@pytest.mark.parametrize("family", ["dnn", "cnn", "vit"])
def test_what_was_measured_wins(table, family):
  assert layout(family) == population.MAPPING[family, "cpu"]
  table.write_text(json.dumps({"cnn/cpu": ["vmap", "map", "im2col"]}))
  population._measured.cache_clear()
  expected = population.MAPPING[family, "cpu"]
  expected = ("vmap", "map", "im2col") if family == "cnn" else expected
  assert layout(family) == expected


def test_a_flag_wins_more(table):
  table.write_text(json.dumps({"cnn/cpu": ["vmap", "map", "im2col"]}))
  assert layout("cnn", seed_mapping="map") == ("map", "map", "im2col")
  assert layout("cnn", convolution="stock") == ("vmap", "map", "stock")


@pytest.mark.parametrize(
  "text", ["{", "[]", '{"cnn/cpu": ["vmap", "map"]}', '{"a": ["v", "map", ""]}']
)
def test_a_broken_table_says_where_it_is(table, text):
  table.write_text(text)
  with pytest.raises(ConfigError, match=re.escape(str(table))):
    layout("cnn")


@pytest.mark.parametrize("device_map", ["shard_map", "pmap"])
@pytest.mark.parametrize("family", ["dnn:9-5", "cnn:3-4"])
def test_a_large_network_splits_its_minibatches(
  digits, monkeypatch, family, device_map
):
  a = Architecture.parse(family)
  pack = Pack((a,), (3,), a, 1)
  config = Config(num_epochs=2, device_map=device_map)
  session = sessions.open_session(config, digits)
  whole = packs.train(session, pack)
  assert sessions.layout_of(session, pack).split == "seed"
  monkeypatch.setattr(packs, "LARGE_STEP_SECONDS", 0.0)
  assert sessions.layout_of(session, pack).split == "batch"
  split = packs.train(session, pack)
  for found, expected in zip(
    jax.tree.leaves((split.params, split.curve)),
    jax.tree.leaves((whole.params, whole.curve)),
    strict=True,
  ):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
