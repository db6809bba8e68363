"""Records: parts are written whole or not at all, and read as one table."""

import io
import os
import pathlib

import polars as pl
from polars import testing
import pytest

import minarch_jax as ma
from minarch_jax import checksums, records
from minarch_jax.config import ConfigError

KINDS = {
  pl.String: "a",
  pl.Int64: 1,
  pl.Float64: 0.5,
  pl.Boolean: True,
  pl.Binary: b"\x80",
}


def rows(table, count=2, **columns):
  """Rows of a table that differ in seed."""
  schema = records.SCHEMAS[table]
  data = {name: [KINDS[kind]] * count for name, kind in schema.items()}
  data |= {"seed": list(range(count)), **columns}
  return pl.DataFrame(data, schema=schema)


TABLES = list(records.SCHEMAS)


@pytest.mark.parametrize("table", TABLES)
def test_what_is_written_is_read_back(tmp_path, table):
  frame = rows(table)
  assert not records.exists(str(tmp_path), table, "one")
  path = records.write(str(tmp_path), table, "one", frame)
  assert records.exists(str(tmp_path), table, "one")
  assert path == str(tmp_path / "records" / table / "one.parquet")
  testing.assert_frame_equal(records.read_table(str(tmp_path), table), frame)
  ((id, found),) = records.parts(str(tmp_path), table)
  assert id == "one"
  testing.assert_frame_equal(found, frame)


@pytest.mark.parametrize("table", TABLES)
def test_nulls_and_column_order_do_not_matter(tmp_path, table):
  frame = rows(table)
  nullable = [c for c, kind in frame.schema.items() if kind == pl.Float64]
  frame = frame.with_columns(pl.lit(None).alias(c) for c in nullable)
  records.write(str(tmp_path), table, "one", frame[:, ::-1])
  found = records.read_table(str(tmp_path), table)
  assert dict(found.schema) == records.SCHEMAS[table]
  assert found[nullable].null_count().row(0) == (2,) * len(nullable)


@pytest.mark.parametrize("table", TABLES)
def test_a_table_is_sorted_and_has_one_row_per_key(tmp_path, table):
  out = str(tmp_path)
  records.write(out, table, "z", rows(table)[::-1])
  records.write(out, table, "a", rows(table, 3))
  found = records.read_table(out, table)
  assert found["seed"].to_list() == [0, 1, 2]
  # The order of the parts decides nothing but which copy stays.
  other = str(tmp_path / "other")
  records.write(other, table, "a", rows(table)[::-1])
  records.write(other, table, "z", rows(table, 3))
  testing.assert_frame_equal(records.read_table(other, table), found)


def study(out, names, table="curves", epochs=(1, 2, 3)):
  """Writes a part per list of networks, each network's rows together."""
  for i, part in enumerate(names):
    frames = [
      rows(table, len(epochs), architecture=[name] * len(epochs)).with_columns(
        seed=pl.lit(seed, pl.Int64), epoch=pl.Series(epochs, dtype=pl.Int64)
      )
      for name, seed in part
    ]
    records.write(out, table, str(i), pl.concat(frames))


@pytest.mark.parametrize(
  "names",
  [
    [[("b", 0), ("a", 1)], [("a", 0), ("c", 0)]],  # parts interleave
    [[("a", 0), ("a", 1)], [("b", 0)]],  # already in order
    [[("b", 0), ("a", 1), ("b", 0)], [("a", 1), ("a", 0)]],  # repeated
    [[("b", 0)], [("a", 0)], [("b", 0)]],
  ],
)
@pytest.mark.parametrize("epochs", [(1, 2, 3), (3, 1, 2), (1, 2, 2)])
def test_reading_equals_sorting_all_rows(tmp_path, names, epochs):
  study(str(tmp_path), names, epochs=epochs)
  keys = [*records.NETWORK, "epoch"]
  every = pl.concat(
    frame for _, frame in records.parts(str(tmp_path), "curves")
  )
  expected = every.unique(keys, keep="first", maintain_order=True).sort(keys)
  found = records.read_table(str(tmp_path), "curves")
  testing.assert_frame_equal(found, expected)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(
  "change, difference",
  [
    (lambda part: part.drop("seed"), "seed"),
    (lambda part: part.drop("architecture", "seed"), "architecture, seed"),
    (lambda part: part.with_columns(sed=1), "sed"),
    (lambda part: part.with_columns(pl.col("seed").cast(pl.Int32)), "types"),
    (lambda part: part[:, ::-1], "types"),
  ],
  ids=["a column less", "two less", "a column more", "a type", "the order"],
)
def test_parts_of_another_version_are_refused(
  tmp_path, table, change, difference
):
  """The message names the file, the difference and what to do."""
  out = str(tmp_path)
  path = records.write(out, table, "one", rows(table))
  records.write(out, table, "two", rows(table))
  rewrite(path, f"{table}/one", change)
  with pytest.raises(ConfigError) as found:
    records.read_table(out, table)
  message = str(found.value)
  assert message.startswith(path) and "two.parquet" not in message
  assert f"differs in {difference}" in message
  assert "that version, or choose another --out" in message


def rewrite(path, name, change):
  """Changes the rows of a part, and marks it as whole again."""
  buffer = io.BytesIO()
  change(pl.read_parquet(path)).write_parquet(buffer)
  content = checksums.marked(buffer.getvalue(), name, records.SCHEMA_VERSION)
  pathlib.Path(path).write_bytes(content)


@pytest.mark.parametrize(
  "change",
  [
    lambda part: part.drop("seed"),
    lambda part: part.with_columns(sed=1),
    lambda part: part.with_columns(pl.col("seed").cast(pl.Int32)),
  ],
  ids=["a column less", "a column more", "a type"],
)
def test_parts_read_together_do_not_hide_one_of_another_version(
  tmp_path, change
):
  out = str(tmp_path)
  records.write(out, "networks", "one", rows("networks"))
  path = records.write(out, "networks", "two", rows("networks"))
  rewrite(path, "networks/two", change)
  with pytest.raises(ConfigError, match=r"two.*written by another version"):
    records.read_table(out, "networks")


def test_how_many_parts_are_read_at_once_does_not_matter(tmp_path, monkeypatch):
  study(str(tmp_path), [[("b", 0)], [("a", 1)], [("a", 0)]])
  found = records.read_table(str(tmp_path), "curves")
  monkeypatch.setattr(records, "_TOGETHER", 1)
  testing.assert_frame_equal(records.read_table(str(tmp_path), "curves"), found)


SETTINGS = {
  "networks": ("run_id", "dataset", "architecture", "seed"),
  "curves": ("run_id", "dataset", "architecture", "seed", "epoch"),
  "compression": (
    *("run_id", "dataset", "architecture", "seed", "criterion", "scope"),
    *("granularity", "schedule", "control", "sparsity", "bits"),
    *("activation_bits", "quantizer", "quant_granularity"),
  ),
  "sensitivity": ("criterion", "granularity", "layer", "sparsity"),
  "overlap": ("criterion", "granularity", "layer", "sparsity", "other"),
}


@pytest.mark.parametrize(
  "table, column", [(t, c) for t, names in SETTINGS.items() for c in names]
)
def test_rows_of_different_settings_are_kept_apart(tmp_path, table, column):
  first = rows(table, 1)
  kind = records.SCHEMAS[table][column]
  other = {pl.String: "b", pl.Int64: 7, pl.Float64: 0.25}[kind]
  second = first.with_columns(pl.lit(other, kind).alias(column))
  records.write(str(tmp_path), table, "one", first)
  records.write(str(tmp_path), table, "two", second)
  assert len(records.read_table(str(tmp_path), table)) == 2


def test_tables_that_were_not_written_are_empty_and_typed(tmp_path):
  records.write(str(tmp_path), "networks", "one", rows("networks"))
  found = ma.read_records(str(tmp_path))
  assert dict(found.curves.schema) == records.SCHEMAS["curves"]
  assert found.curves.is_empty() and found.compression.is_empty()


def test_no_records_say_how_to_make_some(tmp_path):
  with pytest.raises(FileNotFoundError, match="python -m experiments.study"):
    records.read(str(tmp_path))


@pytest.mark.parametrize("table", TABLES)
def test_missing_and_unknown_columns_are_refused(tmp_path, table):
  frame = rows(table)
  for wrong, name in (
    (frame.drop("seed"), "seed"),
    (frame.with_columns(sed=1), "sed"),
  ):
    with pytest.raises(ValueError, match=f"table {table}: .*'{name}'"):
      records.write(str(tmp_path), table, "one", wrong)
  assert not records.exists(str(tmp_path), table, "one")


def test_temporary_files_are_no_parts(tmp_path):
  out = str(tmp_path)
  records.write(out, "curves", "one", rows("curves"))
  (tmp_path / "records" / "curves" / "two.parquet.1f.tmp").write_bytes(b"PAR")
  assert [id for id, _ in records.parts(out, "curves")] == ["one"]


# --- atomic files ------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path, error):
  path = tmp_path / "deep" / "file"
  with records.atomic(str(path)) as temporary, open(temporary, "w") as file:
    file.write("old")
  with pytest.raises(error):  # noqa: SIM117
    with records.atomic(str(path)) as temporary:
      with open(temporary, "w") as file:
        file.write("half")
      raise error
  assert path.read_text() == "old"
  assert os.listdir(path.parent) == ["file"]


def test_json_is_read_as_written(tmp_path):
  path = str(tmp_path / "study.json")
  assert records.read_json(path) == {}
  records.write_json(path, {"b": [1, 2], "a": {"c": None}})
  assert records.read_json(path) == {"b": [1, 2], "a": {"c": None}}
  assert list(records.read_json(path)) == ["b", "a"]


def test_json_that_was_changed_is_not_read(tmp_path):
  path = tmp_path / "study.json"
  records.write_json(str(path), {"b": [1, 2.5], "a": {"3": float("nan")}})
  records.read_json(str(path))
  text = path.read_text()
  path.write_text(text.replace("2.5", "2.7"))  # as by a flipped bit
  with pytest.raises(ConfigError, match="does not hold what was written"):
    records.read_json(str(path))
  path.write_text('{"a": 1}')  # of 0.1, without a seal
  assert records.read_json(str(path)) == {"a": 1}


# --- identity ----------------------------------------------------------------


def test_ids_depend_on_content_only():
  one = records.content_id({"a": (1, 2), "b": {"c": 0.1}})
  assert one == records.content_id({"b": {"c": 0.1}, "a": [1, 2]})
  assert len(one) == 20 and int(one, 16) >= 0


@pytest.mark.parametrize(
  "other",
  [
    {"a": (2, 1), "b": 0.1},
    {"a": (1, 2), "b": 0.1 + 1e-15},
    {"a": (1, 2), "b": "0.1"},
    {"a": (1, 2)},
    [{"a": (1, 2), "b": 0.1}],
  ],
)
def test_ids_see_every_difference(other):
  assert records.content_id({"a": (1, 2), "b": 0.1}) != (
    records.content_id(other)
  )


def test_a_new_schema_gives_new_ids(monkeypatch):
  before = records.content_id("x")
  monkeypatch.setattr(records, "SCHEMA_VERSION", records.SCHEMA_VERSION + 1)
  assert records.content_id("x") != before


def test_an_id_stays_what_it_was():
  # Golden: results directories are found by it, so it may change only together
  # with SCHEMA_VERSION.
  found = records.content_id({"a": [1, "b", None]})
  assert (records.SCHEMA_VERSION, found) == (3, "2685f1f871d90d4e7e8c")


def test_rows_without_their_networks_are_left_out(tmp_path):
  """As of a part that was copied from another directory."""
  out = str(tmp_path)
  records.write(out, "networks", "one", rows("networks"))
  records.write(out, "curves", "one", rows("curves"))
  expected = records.read(out)
  other = rows("curves").with_columns(run_id=pl.lit("other"))
  records.write(out, "curves", "two", other)
  assert len(records.read_table(out, "curves")) == 4
  testing.assert_frame_equal(records.read(out).curves, expected.curves)
