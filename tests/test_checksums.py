"""A damaged, renamed or foreign part is never parsed, and never a number."""

import pathlib
import shutil

import polars as pl
from polars import testing
import pytest

from minarch_jax import checksums, records
from minarch_jax.config import ConfigError
from tests.test_records import rows

TABLE = "networks"
NAME, VERSION = f"{TABLE}/one", records.SCHEMA_VERSION


@pytest.fixture
def path(tmp_path):
  return pathlib.Path(records.write(str(tmp_path), TABLE, "one", rows(TABLE)))


def refused(path, match="cannot be used: .*--repair"):
  with pytest.raises(ConfigError, match=match) as found:
    checksums.read(str(path), NAME, VERSION)
  assert str(path) in str(found.value)


def test_every_reader_of_parquet_reads_a_marked_file(path):
  testing.assert_frame_equal(pl.read_parquet(path), rows(TABLE))
  testing.assert_frame_equal(pl.scan_parquet(path).collect(), rows(TABLE))


def test_every_flipped_bit_is_found(path):
  content = path.read_bytes()
  assert checksums.read(str(path), NAME, VERSION) == content
  for i in range(len(content)):
    damaged = bytearray(content)
    damaged[i] ^= 1 << i % 8
    path.write_bytes(damaged)
    refused(path)


def test_every_lost_end_is_found(path):
  content = path.read_bytes()
  for length in range(0, len(content), 7):
    path.write_bytes(content[:length])
    refused(path)
  path.write_bytes(content + b"\0")
  refused(path)
  path.write_bytes(content[:100] + content[110:])
  refused(path)


def test_another_name_is_another_file(tmp_path, path):
  other = records.write(str(tmp_path), TABLE, "two", rows(TABLE, 3))
  shutil.move(other, path)
  refused(path, "bytes or its name")
  with pytest.raises(ConfigError, match="one.parquet cannot be used"):
    records.read_table(str(tmp_path), TABLE)


@pytest.mark.parametrize(
  "content", [b"", b"PAR1", b"PAR1" * 30, b"a note\n", b"\xff" * 200]
)
def test_what_is_no_part_is_refused(path, content):
  path.write_bytes(content)
  refused(path)


def test_a_foreign_table_is_refused(path):
  rows(TABLE).write_parquet(path)
  refused(path, "no mark of this project")


@pytest.mark.parametrize(("by", "word"), [(1, "an older"), (-1, "a newer")])
def test_other_versions_are_told_apart_from_damage(path, by, word):
  with pytest.raises(ConfigError, match=word) as found:
    checksums.read(str(path), NAME, VERSION + by)
  assert "--repair" not in str(found.value)
