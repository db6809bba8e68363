r"""Asks whether a change of the code changes numbers.

  python -m experiments.benchmarks.same_numbers --base=main
  python -m experiments.benchmarks.same_numbers --base=HEAD~3 \
    --study=--families=dnn --study=--num_seeds=1

Runs a tiny study of all families with a revision of this repository, in a
temporary `git worktree`, and with the working tree. Says of each table whether
the parts have the same names (their content ids) and whether the rows are equal
bit for bit, and if not, in which columns. Ends with exit status 1 where rows
differ. Rounding differs between processors, so both run here and nothing is
kept to compare with.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import glob
import os
import subprocess
import sys
import tempfile
from typing import NamedTuple

from absl import app, flags
import polars as pl

from experiments.benchmarks import measure
from minarch_jax import records

flags.DEFINE_string("base", None, "Revision to compare with.", required=True)
flags.DEFINE_multi_string(
  "study", [], "A flag of both studies, as --study=--num_seeds=1; may repeat."
)

# Every family, criterion of a kind, granularity and kind of rounding.
TINY = (
  "--grid=tiny",
  "--num_seeds=2",
  "--num_epochs=2",
  "--sparsities=0,0.5,0.9",
  "--granularities=element,unit",
  "--bits=32,8,3",
  "--activation_bits=32,4",
  "--quantizers=absmax,mse,nf4,uint4",
  "--criteria=magnitude,random,snip,wanda",
  "--num_bootstrap=200",
)
MEASURED = ("seconds",)  # differs from run to run
IDENTITY = ("run_id",)  # content ids, told apart from numbers

Parts = dict[str, pl.DataFrame]  # part name -> rows


class Compared(NamedTuple):
  """One table of two directories.

  Attributes:
    rows: how many each has.
    same_ids: whether the parts have the same names and the rows the same ids.
    differing: column -> rows in which it differs; all, where only one of the
      directories has the column.
  """

  rows: tuple[int, int]
  same_ids: bool
  differing: dict[str, int]

  @property
  def same_rows(self) -> bool:
    return self.rows[0] == self.rows[1] and not self.differing


def compare(base: str, here: str) -> dict[str, Compared]:
  """Compares the records of two results directories, table by table."""
  one, other = _read(base), _read(here)
  return {
    table: _compare(table, one.get(table, {}), other.get(table, {}))
    for table in sorted({*one, *other})
  }


def _read(out: str) -> dict[str, Parts]:
  """Reads parts as they are: `records.read` refuses those of other versions."""
  found: dict[str, Parts] = {}
  for path in sorted(glob.glob(f"{glob.escape(out)}/records/*/*.parquet")):
    folder, name = os.path.split(path)
    part = found.setdefault(os.path.basename(folder), {})
    part[name] = pl.read_parquet(path)
  return found


def _compare(table: str, one: Parts, other: Parts) -> Compared:
  a, b = (_joined(table, parts) for parts in (one, other))
  same_ids = one.keys() == other.keys()
  for name in IDENTITY:
    if name in a.columns and name in b.columns:
      same_ids &= set(a[name]) == set(b[name])
  a, b = (frame.drop(*MEASURED, *IDENTITY, strict=False) for frame in (a, b))
  differing = {
    name: max(len(a), len(b)) for name in set(a.columns) ^ set(b.columns)
  }
  if len(a) == len(b):
    for name in a.columns:
      if name in b.columns and not a[name].equals(b[name], check_dtypes=True):
        differs = a[name].ne_missing(b[name])
        differing[name] = int(differs.sum()) or len(a)
  return Compared((len(a), len(b)), same_ids, differing)


def _joined(table: str, parts: Parts) -> pl.DataFrame:
  """All rows by key, whatever parts they stand in."""
  if not parts:
    return pl.DataFrame()
  whole = pl.concat(parts.values(), how="diagonal_relaxed")
  keys = [
    name
    for name in records.KEYS.get(table, ())
    if name in whole.columns and name not in IDENTITY
  ]
  return whole.sort([*keys, *sorted({*whole.columns} - {*keys, *MEASURED})])


def described(found: Mapping[str, Compared]) -> str:
  """Tells what was compared, a line per table."""
  lines = []
  for table, (rows, same_ids, differing) in found.items():
    ids = "ids equal" if same_ids else "ids differ"
    columns = ", ".join(f"{name} ({n:,})" for name, n in differing.items())
    equal = f"rows differ in {columns}" if differing else "rows equal"
    if rows[0] != rows[1]:
      equal = f"{rows[0]:,} and {rows[1]:,} rows {columns}"
    lines.append(f"{table:<14}{rows[1]:>9,}  {ids:<12}{equal}".rstrip())
  return "\n".join(lines)


@contextlib.contextmanager
def checkout(root: str, revision: str) -> Iterator[str]:
  """Gives a temporary worktree of a revision of the repository at `root`.

  Raises:
    subprocess.CalledProcessError: there is no such revision.
  """
  git = ["git", "-C", root, "worktree"]
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "checkout")
    _run([*git, "add", "--quiet", "--detach", path, revision], root)
    try:
      yield path
    finally:
      _run([*git, "remove", "--force", path], root)


def study(root: str, out: str, more: Sequence[str]) -> None:
  """Runs the tiny study with the code at `root` into `out`.

  Raises:
    subprocess.CalledProcessError: it failed.
  """
  words = ["-m", "experiments.study", f"--out={out}", *TINY, *more]
  _run([sys.executable, *words], root)


def _run(words: Sequence[str], folder: str) -> None:
  subprocess.run(words, cwd=folder, check=True, capture_output=True, text=True)


def compared(
  root: str, revision: str, more: Sequence[str] = ()
) -> dict[str, Compared]:
  """Compares a revision of the repository at `root` with its working tree.

  Raises:
    subprocess.CalledProcessError: no such revision, or a study failed.
  """
  with tempfile.TemporaryDirectory() as folder:
    before, here = (os.path.join(folder, name) for name in ("base", "here"))
    with checkout(root, revision) as path:
      study(path, before, more)
    study(root, here, more)
    return compare(before, here)


def main(argv: Sequence[str]) -> None:
  del argv
  given = flags.FLAGS
  try:
    found = compared(measure.ROOT, given.base, given.study)
  except subprocess.CalledProcessError as error:
    sys.exit(f"error: {' '.join(error.cmd)} failed:\n{error.stderr.strip()}")
  print(described(found))
  if not all(each.same_rows for each in found.values()):
    sys.exit(1)


if __name__ == "__main__":
  app.run(main)
