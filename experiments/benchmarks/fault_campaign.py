r"""Injects faults into a tiny study, and asks what was lost or came out wrong.

  python -m experiments.benchmarks.fault_campaign --out=results/faults
  python -m experiments.benchmarks.fault_campaign --kinds='^kill' --most=3

After each fault the study is run: it has to succeed, or to end with one message
and another exit status than 0. Then what the message asks for is done, and it
is run again: it has to succeed, and its tables have to be those of a study that
nobody disturbed, bit for bit. Studies are children of one process that has
imported what they need, so that each takes a few seconds. As root, disks are
full in truth (a small tmpfs); otherwise these faults are left out.
"""

import atexit
import collections
from collections.abc import Sequence
import csv
import hashlib
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple
import warnings

from absl import app, flags

from experiments.benchmarks import faults
from experiments.benchmarks.faults import Place, Run

flags.DEFINE_string("out", "results", "Directory of the table.")
flags.DEFINE_string("kinds", "", "A pattern of the kinds to inject ('' = all).")
flags.DEFINE_integer("most", 50, "Faults of a kind, at most.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Decides where and when.")
OWN = ("out", "kinds", "most", "seed")

STUDY = (
  *("--dataset=./images", "--architectures=dnn:3,dnn:5,dnn:4-4"),
  *("--num_seeds=2", "--folds=2", "--num_epochs=12", "--batch_size=16"),
  *("--design=sweep", "--finetune_share=0", "--controls=", "--sparsities=0,.5"),
  *("--bits=32,4", "--dense_bits=", "--packs_at_once=2", "--memory_limit=1e-4"),
  *("--checkpoint_minutes=0", "--num_bootstrap=100", "--figures="),
  "--out=out",
)
OTHERWISE = ("--learning_rate=0.02", "--out=other")
NORMAL = Run()
# After the first pack is written, and while one is in training.
_STATES = "minarch_jax.stages.unfinished:_Unfinished"
STOPS = {
  "": faults.nothing,
  "half": faults.stop_after("minarch_jax.stages:train", "_keep", 1),
  "training": faults.stop_after(_STATES, "keep", 5),
}
TABLES = "tables: "
PATIENCE = 300.0  # seconds for one run


class Ended(NamedTuple):
  """What a run left: exit status, what it said, the digest of its tables."""

  code: int
  said: str
  tables: str
  seconds: float


def child(place: Place, words: Sequence[str], run: Run) -> None:
  """Runs the study in this process, which ends with it."""
  os.chdir(place.root)
  os.environ["XDG_CACHE_HOME"] = str(place.cache.parent)
  os.environ.pop("MINARCH_CACHE_DIR", None)
  said = os.open(place.root / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
  os.dup2(said, 1)
  os.dup2(said, 2)
  sys.argv = ["study", *STUDY, *words]
  sys.orig_argv = [sys.executable, "-m", "experiments.study", *sys.argv[1:]]
  for name in OWN:  # those of the study take their names
    delattr(flags.FLAGS, name)
  from experiments import common
  from minarch_jax import flags as config_flags
  from minarch_jax import study
  from minarch_jax.engine import session as sessions

  config_flags.define()
  sessions.CALL_SECONDS = 0.0  # a state may be kept after every epoch
  run.before()
  whole = common.line() if run.real else study.run

  def stage(config) -> None:
    whole(config)
    print(f"{TABLES}{digest(config.out)}")  # reads all, as a report does

  common.run(stage)


def ran(place: Place, run: Run = NORMAL, words: Sequence[str] = ()) -> Ended:
  """Runs the study in a child."""
  start = time.monotonic()
  pid = os.fork()
  if not pid:
    code: object = 70
    try:
      child(place, words, run)
      code = 0
    except SystemExit as error:
      code = error.code
    except BaseException:
      import traceback

      traceback.print_exc()
    if isinstance(code, str):
      print(code, file=sys.stderr)
      code = 1
    atexit._run_exitfuncs()  # which os._exit leaves out
    for stream in (sys.stdout, sys.stderr):
      stream.flush()
    os._exit(int(code or 0))  # type: ignore
  code = _waited(pid, list(run.kill))
  seconds = time.monotonic() - start
  said = (place.root / "said").read_text()
  return Ended(code, said, said.rpartition(TABLES)[2].strip(), seconds)


def _waited(pid: int, kill: list[tuple[float, int]]) -> int:
  """Waits for a child and sends it signals; returns its exit status."""
  began = last = time.monotonic()
  while True:
    found, status = os.waitpid(pid, os.WNOHANG)
    if found:
      return os.waitstatus_to_exitcode(status)
    now = time.monotonic()
    if kill and now - last >= kill[0][0]:
      _, number = kill.pop(0)
      os.kill(pid, number)
      last = now
    if now - began > PATIENCE:
      os.kill(pid, signal.SIGKILL)
    time.sleep(0.005)


def digest(out: str) -> str:
  """Hashes all tables of a results directory but for measured seconds."""
  import polars as pl

  from minarch_jax import records

  state = hashlib.sha256()
  for table in records.read(out):
    table = table.drop("seconds", strict=False)
    text = table.with_columns(pl.col(pl.Binary).bin.encode("hex")).write_csv()
    state.update(text.encode())
  return state.hexdigest()


def make_images(folder: pathlib.Path) -> None:
  """Draws three classes of images that networks of this size can learn."""
  import numpy as np
  from PIL import Image

  draw = np.random.default_rng(0)
  for label in range(3):
    (folder / f"class {label}").mkdir(parents=True)
    for i in range(30):
      image = draw.integers(0, 160, (6, 6)).astype(np.uint8)
      image[2 * label : 2 * label + 2] += 60
      Image.fromarray(image).save(folder / f"class {label}" / f"{i}.png")


def make_bases(root: pathlib.Path) -> tuple[dict[str, Place], Ended]:
  """Makes studies to disturb: none, a half one, a whole one."""
  whole = Place(root / "whole")
  whole.cache.mkdir(parents=True)
  make_images(whole.images)
  assert not ran(whole).code, (whole.root / "said").read_text()
  assert not ran(whole, words=OTHERWISE).code
  shutil.rmtree(whole.out)
  undisturbed = ran(whole)  # with all programs cached
  bases = {"whole": whole}
  for name, before in STOPS.items():
    bases[name] = Place(root / f"base {name}")
    shutil.copytree(whole.root, bases[name].root)
    shutil.rmtree(bases[name].out)
    if name:
      assert ran(bases[name], Run(before=before)).code == os.EX_TEMPFAIL
  assert list(bases["training"].out.glob("checkpoints/unfinished/*/*"))
  assert list(bases["half"].out.glob("records/networks/*"))
  return bases, undisturbed


def judged(first: Ended, last: Ended, run: Run, expected: str) -> str:
  """Says what was wrong; '' = nothing."""
  for ended in (first, last):
    if "Traceback" in ended.said:
      return "a traceback"
  if first.code > 0 and "error: " not in first.said and first.code != 75:
    return f"status {first.code} without a message"
  if first.code == 75 and "Go on with: " not in first.said:
    return "stopped without a message"
  if first.code < 0 and not run.kill:
    return f"died of signal {-first.code}"
  if run.expect and (not first.code or run.expect not in first.said):
    return f"no message of {run.expect!r}"
  if not first.code and first.tables != expected:
    return "other tables, and no message"
  if last.code:
    return f"status {last.code} after the remedy"
  return "" if last.tables == expected else "other tables after the remedy"


def injected(
  place: Place, kind: faults.Kind, draw: random.Random, expected: str
) -> tuple[str, str, Ended]:
  """Injects one fault; returns what was wrong, what was said, how it ended."""
  run = kind.fault(place, draw)
  try:
    first = ran(place, run)
    run.undo()
    again = first.code or not run.real
    last = ran(place, Run(real=run.real), run.words) if again else first
  finally:
    subprocess.run(["umount", place.out], capture_output=True)
  wrong = judged(first, last, run, expected)
  return wrong, f"{first.said}\n-- then\n{last.said}", first


def main(argv: Sequence[str]) -> None:
  del argv
  warnings.filterwarnings("ignore", message="os.fork")
  options = flags.FLAGS.out, flags.FLAGS.kinds, flags.FLAGS.most
  out, pattern, most = options
  seed = flags.FLAGS.seed
  os.environ["JAX_PLATFORMS"] = "cpu"
  import flax.linen
  import jax
  import optax
  import orbax.checkpoint
  import scipy.stats

  del flax, jax, optax, orbax, scipy  # children find them loaded
  lines, bad, log = collections.Counter(), collections.Counter(), []
  ends = collections.defaultdict(collections.Counter)
  root = pathlib.Path(tempfile.mkdtemp())  # a context would end in children
  root.chmod(0o755)
  bases, undisturbed = make_bases(root)
  found = faults.kinds(undisturbed.seconds, os.geteuid() == 0)
  for name, kind in found.items():
    if not re.search(pattern, name):
      continue
    for number in range(min(kind.times, most)):
      place = Place(root / "place")
      shutil.copytree(bases[kind.base].root, place.root)
      draw = random.Random(f"{seed} {name} {number}")
      wrong, said, first = injected(place, kind, draw, undisturbed.tables)
      lines[name] += 1
      bad[name] += bool(wrong)
      ends[name][first.code] += 1
      if wrong:
        log.append(f"== {name} {number}: {wrong}\n{said}")
        print(log[-1], file=sys.stderr, flush=True)
      shutil.rmtree(place.root)
    table(name, lines[name], ends[name], bad[name])
  shutil.rmtree(root)
  write(out, lines, ends, bad)
  print(
    f"{sum(lines.values())} faults of {len(lines)} kinds, {bad.total()} bad"
  )
  sys.exit(bool(log))


def table(name: str, count: int, ends: dict[int, int], bad: int) -> None:
  codes = ", ".join(f"{code}: {n}" for code, n in sorted(ends.items()))
  print(f"| {name} | {count} | {codes} | {bad} |", flush=True)


def write(out: str, lines, ends, bad) -> None:
  path = pathlib.Path(out) / "benchmarks" / "fault_campaign.csv"
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["kind", "faults", "ended with", "bad"])
    for name, count in lines.items():
      writer.writerow([name, count, dict(ends[name]), bad[name]])


if __name__ == "__main__":
  app.run(main)
