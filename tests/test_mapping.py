"""The table of layouts: what was measured wins, what is asked for wins more."""

import json
import re

import pytest

from minarch_jax import population
from minarch_jax.config import Config, ConfigError


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
