"""The comparison of two checkouts: it finds what differs, and only that."""

import subprocess
import sys

import polars as pl
import pytest

from experiments.benchmarks import same_numbers

ROWS = pl.DataFrame(
  {
    "run_id": ["r"] * 4,
    "dataset": ["d"] * 4,
    "architecture": ["dnn:3", "dnn:3", "cnn:2", "cnn:2"],
    "seed": [0, 1, 0, 1],
    "val_accuracy": [0.5, None, 0.25, float("nan")],
    "seconds": [1.0, 2.0, 3.0, 4.0],
  }
)


def write(out, rows=ROWS, table="networks", names=("one", "two")):
  """Writes a table in two parts."""
  folder = out / "records" / table
  folder.mkdir(parents=True)
  for i, name in enumerate(names):
    rows[2 * i : 2 * i + 2].write_parquet(folder / f"{name}.parquet")


def compare(tmp_path, **other):
  """Compares the rows with others."""
  write(tmp_path / "base")
  write(tmp_path / "here", **other)
  found = same_numbers.compare(str(tmp_path / "base"), str(tmp_path / "here"))
  assert list(found) == ["networks"]
  return found["networks"], same_numbers.described(found)


@pytest.mark.parametrize(
  "other",
  [
    {},
    {"rows": ROWS.with_columns(pl.col("seconds") + 1)},
    {"rows": ROWS[::-1]},
    {"rows": ROWS[::-1].select(ROWS.columns[::-1])},
  ],
  ids=["the same", "other seconds", "other parts", "other order"],
)
def test_equal_rows_are_equal(tmp_path, other):
  found, text = compare(tmp_path, **other)
  assert found.same_rows and found.same_ids and found.rows == (4, 4)
  assert text == "networks              4  ids equal   rows equal"


@pytest.mark.parametrize(
  "other",
  [
    {"names": ("one", "three")},
    {"rows": ROWS.with_columns(run_id=pl.lit("s"))},
  ],
  ids=["parts", "recipe"],
)
def test_ids_are_told_apart_from_rows(tmp_path, other):
  found, text = compare(tmp_path, **other)
  assert found.same_rows and not found.same_ids
  assert "ids differ  rows equal" in text


def test_columns_that_differ_are_named(tmp_path):
  last = ROWS["val_accuracy"].to_list()
  last[0] = 0.5 + 2**-53  # the next number
  other = ROWS.with_columns(val_accuracy=pl.Series(last), depth=pl.lit(1))
  found, text = compare(tmp_path, rows=other)
  assert not found.same_rows and found.same_ids
  assert found.differing == {"depth": 4, "val_accuracy": 1}
  assert "rows differ in depth (4), val_accuracy (1)" in text


def test_a_missing_value_is_none_of_the_numbers(tmp_path):
  other = ROWS.with_columns(pl.col("val_accuracy").fill_null(float("nan")))
  found, _ = compare(tmp_path, rows=other)
  assert found.differing == {"val_accuracy": 1}


def test_another_type_is_another_column(tmp_path):
  other = ROWS.with_columns(pl.col("seed").cast(pl.Int32))
  found, _ = compare(tmp_path, rows=other)
  assert found.differing == {"seed": 4}


def test_rows_and_tables_that_are_missing_are_counted(tmp_path):
  found, text = compare(tmp_path, rows=ROWS[:3])
  assert not found.same_rows and "4 and 3 rows" in text
  write(tmp_path / "here", table="curves")
  both = same_numbers.compare(str(tmp_path / "base"), str(tmp_path / "here"))
  assert both["curves"].rows == (0, 4) and not both["curves"].same_rows


# --- two checkouts -----------------------------------------------------------

# Stands for a study: its numbers are what this version of the code says.
STUDY = """
import os, sys
import polars as pl
(out,) = [word[6:] for word in sys.argv if word.startswith("--out=")]
assert "--grid=tiny" in sys.argv and "--num_seeds=1" in sys.argv
os.makedirs(f"{{out}}/records/networks")
frame = pl.DataFrame({{"seed": [0, 1], "val_accuracy": [0.5, {number}]}})
frame.write_parquet(f"{{out}}/records/networks/part.parquet")
"""


@pytest.fixture
def repository(tmp_path):
  """A repository whose first commit finds the number 1."""
  root = tmp_path / "repository"
  (root / "experiments").mkdir(parents=True)
  (root / "experiments" / "study.py").write_text(STUDY.format(number=1))

  def git(*words):
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    command = ["git", "-C", str(root), *who, *words]
    return subprocess.run(
      command, check=True, capture_output=True, text=True
    ).stdout

  git("init", "--quiet")
  git("add", ".")
  git("commit", "--quiet", "--message=one")
  return root, git


@pytest.mark.parametrize("number", [1, 2])
def test_a_revision_is_compared_with_the_working_tree(repository, number):
  root, git = repository
  (root / "experiments" / "study.py").write_text(STUDY.format(number=number))
  before = git("status", "--short")
  found = same_numbers.compared(str(root), "HEAD", ["--num_seeds=1"])
  assert found["networks"].same_rows == (number == 1)
  # The worktree is gone, and the working tree as it was.
  assert len(git("worktree", "list").splitlines()) == 1
  assert git("status", "--short") == before


def test_the_exit_status_tells_a_script(repository):
  root, _ = repository
  script = (
    "import sys; from experiments.benchmarks import measure, same_numbers;"
    "from absl import app;"
    f"measure.ROOT = {str(root)!r}; app.run(same_numbers.main)"
  )

  def run(*words):
    return subprocess.run(
      [sys.executable, "-c", script, "--study=--num_seeds=1", *words],
      capture_output=True,
      text=True,
    )

  same = run("--base=HEAD")
  assert same.returncode == 0 and "rows equal" in same.stdout, same.stderr
  (root / "experiments" / "study.py").write_text(STUDY.format(number=3))
  other = run("--base=HEAD")
  assert other.returncode == 1 and "val_accuracy (1)" in other.stdout
  unknown = run("--base=no-such")
  assert unknown.returncode == 1 and "no-such" in unknown.stderr
  assert "Traceback" not in unknown.stderr
