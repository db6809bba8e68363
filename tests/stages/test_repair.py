"""Damage is named, set aside on demand, and leaves the tables as they were."""

import pathlib
import shutil

import pytest

import minarch_jax as ma
from minarch_jax import records
from minarch_jax.config import ConfigError
from minarch_jax.stages import checkpoints, repair
from tests import tiny_study


def part(out, table, number=0):
  return sorted((out / "records" / table).iterdir())[number]


def flipped(table):
  def damage(out):
    path = part(out, table)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    return path

  return damage


def cut_off(out):
  path = part(out, "curves")
  path.write_bytes(path.read_bytes()[:-50])
  return path


def exchanged(out):
  one, other = (part(out, "networks", i) for i in (0, 1))
  kept = one.read_bytes()
  one.write_bytes(other.read_bytes())
  other.write_bytes(kept)
  return one


def foreign(out):
  path = out / "records" / "compression" / "notes.parquet"
  path.write_text("not a table")
  return path


def no_study(out):
  path = out / "study.json"
  path.write_text(path.read_text()[:-40])
  return path


def all_sizes(out):
  """The files of a checkpoint, the largest last."""
  folder = checkpoints.path(str(out), part(out, "networks").stem)
  files = [p for p in pathlib.Path(folder).rglob("*") if p.is_file()]
  return sorted(files, key=lambda p: p.stat().st_size)


def cut_checkpoint(out):
  path = all_sizes(out)[-1]
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  return pathlib.Path(checkpoints.path(str(out), part(out, "networks").stem))


FAULTS = [
  *(flipped(table) for table in ("networks", "curves", "compression")),
  *(cut_off, exchanged, foreign, no_study),
]


def content(folder):
  return {
    path.read_bytes()
    for path in folder.rglob("*")
    if path.is_file() and path.suffix in (".parquet", ".json")
  }


@pytest.mark.parametrize("damage", FAULTS, ids=range(len(FAULTS)))
def test_damage_is_named_and_made_good(studied, copy, damage):
  path = damage(copy)
  with pytest.raises(ConfigError, match="--repair") as found:
    tiny_study.run(copy)
    ma.read_records(str(copy))
  assert str(path) in str(found.value)
  before = content(copy)
  moved = repair.set_aside(str(copy))
  assert str(path.relative_to(copy)) in moved
  assert before <= content(copy)  # nothing is lost
  tiny_study.run(copy)
  assert not repair.set_aside(str(copy))
  tiny_study.assert_same_tables(
    ma.read_records(str(copy)), ma.read_records(str(studied))
  )


# What orbax leaves half open where it stumbles.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_parameters_are_those_that_were_saved(copy):
  """Whatever byte is changed, in whichever file of a checkpoint."""
  out, id = str(copy), part(copy, "networks").stem
  expected = checkpoints.load(out, id)
  refused = 0
  for path in all_sizes(copy):
    kept = path.read_bytes()
    for at in range(0, len(kept), max(1, len(kept) // 5)):
      changed = bytearray(kept)
      changed[at] ^= 1
      path.write_bytes(changed)
      try:
        found = checkpoints.load(out, id)
      except ConfigError as error:
        assert "--repair" in str(error)
        refused += 1
      else:  # a byte that means nothing, such as a time
        assert all(
          (a[layer][leaf] == b[layer][leaf]).all()
          for a, b in zip(found, expected, strict=True)
          for layer in a
          for leaf in a[layer]
        )
    path.write_bytes(kept)
  assert refused > 3


def test_a_pack_goes_with_its_checkpoint(studied, copy):
  folder = cut_checkpoint(copy)
  id = folder.name
  moved = repair.set_aside(str(copy))
  assert sorted(moved) == [
    f"checkpoints/{id}",
    f"records/curves/{id}.parquet",
    f"records/hits/{id}.parquet",
    f"records/networks/{id}.parquet",
  ]
  tiny_study.run(copy)
  tiny_study.assert_same_tables(
    ma.read_records(str(copy)), ma.read_records(str(studied))
  )
  shutil.copytree(
    copy / "damaged" / "checkpoints" / id, folder, dirs_exist_ok=True
  )
  again = repair.set_aside(str(copy))
  assert sorted(again) == sorted(moved)  # beside what lies there already
  assert len(list((copy / "damaged" / "checkpoints").iterdir())) == 2


def test_a_whole_study_stays(copy):
  before = tiny_study.files(copy)
  assert repair.set_aside(str(copy)) == []
  assert tiny_study.files(copy) == before
  assert records.damaged(str(copy)) == []
