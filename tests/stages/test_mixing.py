"""One directory, one study: what differs is told, and added only on demand."""

import os

import polars as pl
import pytest

import minarch_jax
import minarch_jax as ma
from minarch_jax import records
from minarch_jax.config import ConfigError
from minarch_jax.stages import mixing
from tests import tiny_study

LONGER = {"num_epochs": 4, "architectures": ("dnn:3",), "finetune_share": 0.5}


def noted(out):
  return records.read_json(os.path.join(out, "study.json"))["recipes"]


def check(out, **changes):
  mixing.check(tiny_study.open_session(**changes), str(out))


def refused(out, *words, **changes):
  before = tiny_study.files(out)
  for _ in range(2):  # and again: a refusal leaves nothing that would allow it
    with pytest.raises(ConfigError) as found:
      tiny_study.run(out, **changes)
    assert all(word in str(found.value) for word in words), found.value
  assert tiny_study.files(out) == before


@pytest.mark.parametrize(
  "changes",
  [
    {"num_seeds": 5},
    {"first_seed": 9},
    {"sparsities": (0.0, 0.5), "bits": (8, 32)},
    {"architectures": ("dnn:5",), "memory_limit": 1.0},
    {"eps_accuracy": 0.1, "dataset": "made-up:other"},
  ],
  ids=lambda changes: next(iter(changes)),
)
def test_a_study_grows(studied, changes):
  check(studied, **changes)


@pytest.mark.parametrize(
  "changes",
  [
    {"num_epochs": 4},
    {"batch_size": 16},
    {"learning_rate": 0.02},
    {"init": "pytorch"},
  ],
  ids=lambda changes: next(iter(changes)),
)
def test_another_recipe_is_refused_with_the_difference(studied, changes):
  ((name, value),) = changes.items()
  before = getattr(tiny_study.CONFIG, name)
  told = f"(--{name}={before}, now {value})"
  refused(studied, told, str(studied), "--allow_mixed", **changes)


def test_all_differences_are_told(copy, monkeypatch):
  before = ma.__version__
  monkeypatch.setattr(tiny_study, "dataset", _other_images)
  monkeypatch.setattr(minarch_jax, "__version__", "9.9")
  refused(
    copy,
    f"by version {before} of this package, this is 9.9",
    "with fingerprint bytes, now others: other images",
    "--momentum=0.9, now 0.5",
    momentum=0.5,
  )


def _other_images():
  return tiny_study.made_up.dataset(
    52, 13, 11, spread=2.0, fingerprint="others"
  )


def test_another_version_is_refused_for_the_same_recipe(copy, monkeypatch):
  monkeypatch.setattr(minarch_jax, "__version__", "9.9")
  refused(copy, "this is 9.9", num_seeds=3)
  check(copy, num_seeds=3, allow_mixed=True)


def test_who_insists_gets_both(copy):
  assert tiny_study.run(copy, allow_mixed=True, **LONGER)
  found = ma.read_records(str(copy)).networks
  assert set(found["epochs"]) == {3, 4} and found["run_id"].n_unique() == 2
  assert set(noted(copy)) == set(found["run_id"])
  # What was mixed stays so: whoever adds to either is told.
  refused(copy, "--num_epochs=4, now 3")


def test_without_notes_the_rows_tell(copy):
  """As in directories of earlier versions, or after --repair."""
  (copy / "study.json").unlink()
  check(copy)
  refused(copy, "(--num_epochs=3, now 4)", num_epochs=4)
  refused(copy, "(their flags are unknown)", batch_size=16)


def test_an_arm_is_no_other_study(copy):
  """The sweep of an arm's data set may join it, by a recipe of its own."""
  out = str(copy)
  (id, rows), *_ = records.parts(out, "networks")
  other = {"dataset": "made-up:other", "arm": records.HARDER, "run_id": "x"}
  arm = rows.with_columns(**{k: pl.lit(v) for k, v in other.items()})
  records.write(out, "networks", "arm", arm)
  check(copy, dataset="made-up:other")
  sweep = arm.with_columns(arm=pl.lit(records.MAIN))
  records.write(out, "networks", "arm", sweep)
  with pytest.raises(ConfigError, match="allow_mixed"):
    check(copy, dataset="made-up:other")


def test_retraining_with_other_flags_is_refused_even_so(copy):
  refused(
    copy,
    "--finetune_learning_rate=0.5, but",
    finetune_learning_rate=0.5,
    allow_mixed=True,
  )
