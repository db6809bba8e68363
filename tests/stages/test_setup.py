"""What every stage starts with: checks before anything heavy, and identity."""

import dataclasses

import pytest

from minarch_jax.config import Config, ConfigError
from minarch_jax.stages import setup
from tests import tiny_study


def test_checks_come_before_anything_heavy():
  config = Config(dataset="digits")
  assert setup.check(config).num_classes == 10
  for changes, message in (
    ({"batch_size": 5000}, "--batch_size=5000 is larger than .* digits"),
    ({"architectures": ("vit:p3-d4-l1-h1",)}, "--architectures: .*patch 3"),
    ({"dataset": "mnits"}, "--dataset=mnits .*did you mean 'mnist'"),
  ):
    with pytest.raises(ConfigError, match=message):
      setup.check(config.replace(**changes))


def test_groups_that_do_not_fit_a_network_are_refused():
  config = Config(dataset="digits", architectures=("dnn:6",))
  setup.check(config.replace(granularities=("element", "unit")))
  message = "--granularities=nm:4 does not fit dnn:6"
  with pytest.raises(ConfigError, match=message):
    setup.check(config.replace(granularities=("element", "nm:4")))


def test_a_sparsity_that_leaves_none_of_every_four_is_refused():
  config = Config(dataset="digits", architectures=("dnn:8",))
  config = config.replace(granularities=("element", "nm:4"))
  with pytest.raises(ConfigError, match="sparsity 0.9 .*at most 0.75"):
    setup.check(config)
  setup.check(config.replace(sparsities=(0.0, 0.5, 0.8)))


def test_other_bytes_of_data_are_another_recipe():
  session = tiny_study.open_session()
  other = dataclasses.replace(session.dataset, fingerprint="other bytes")
  changed = dataclasses.replace(session, dataset=other)
  assert setup.recipe_id(changed) != setup.recipe_id(session)


def test_a_recipe_is_what_decides_training():
  recipe = setup.recipe_id(tiny_study.open_session())
  for changes in ({"learning_rate": 0.02}, {"num_epochs": 4}):
    assert setup.recipe_id(tiny_study.open_session(**changes)) != recipe
  for changes in ({"num_seeds": 9}, {"bits": (32,)}, {"packs_at_once": 3}):
    assert setup.recipe_id(tiny_study.open_session(**changes)) == recipe
