"""Faults that a study meets: each spoils a place, or the process there.

A fault is a function of a place and a random generator. What it returns says
how the process is run, and what a user does who has read the message.
"""

from collections.abc import Callable, Sequence
import errno
import itertools
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import time
from typing import Any, NamedTuple

from minarch_jax import registries


class Place(NamedTuple):
  """Where a study runs: folders of results, caches and images."""

  root: pathlib.Path

  @property
  def out(self) -> pathlib.Path:
    return self.root / "out"

  @property
  def cache(self) -> pathlib.Path:
    return self.root / "cache" / "minarch_jax"

  @property
  def images(self) -> pathlib.Path:
    return self.root / "images"


def nothing() -> None:
  """Does nothing."""


class Run(NamedTuple):
  """How a study is run.

  Attributes:
    before: called in the process, before the study starts.
    kill: signals that are sent to it, each so many seconds after the last.
    undo: what a user does before the next run, besides `words`.
    words: flags that the message asks for.
    expect: a part of the message, if there has to be one.
    real: whether to run the real command, which ends with the report.
  """

  before: Callable[[], Any] = nothing
  kill: Sequence[tuple[float, int]] = ()
  undo: Callable[[], Any] = nothing
  words: Sequence[str] = ()
  expect: str = ""
  real: bool = False


Fault = Callable[[Place, random.Random], Run]
REPAIR = Run(words=("--repair",))


class Kind(NamedTuple):
  """A kind of fault: what it does to which study, and how often."""

  base: str  # "" = before the first run, "whole" = done, else stopped
  fault: Fault
  times: int = 5


# --- damage to a file --------------------------------------------------------


def flip(path: pathlib.Path, draw: random.Random) -> None:
  content = bytearray(path.read_bytes())
  content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
  path.write_bytes(content)


def truncate(path: pathlib.Path, draw: random.Random) -> None:
  os.truncate(path, draw.randrange(path.stat().st_size))


def empty(path: pathlib.Path, draw: random.Random) -> None:
  del draw
  os.truncate(path, 0)


def replace(path: pathlib.Path, draw: random.Random) -> None:
  path.write_bytes(draw.randbytes(draw.randrange(1, 2000)))


def remove(path: pathlib.Path, draw: random.Random) -> None:
  del draw
  path.unlink()


def exchange(one: pathlib.Path, other: pathlib.Path) -> None:
  kept = one.with_name("kept")
  one.rename(kept)
  other.rename(one)
  kept.rename(other)


def files(folder: pathlib.Path, pattern: str) -> list[pathlib.Path]:
  """Lists what there is to spoil; files that are empty cannot be."""
  found = sorted(folder.glob(pattern))
  return [path for path in found if path.is_dir() or path.stat().st_size]


def spoiling(folder: str, pattern: str, how: Callable, then: Run) -> Fault:
  """Spoils one file of a folder of the place."""

  def fault(place: Place, draw: random.Random) -> Run:
    found = files(getattr(place, folder), pattern)
    how(draw.choice([path for path in found if path.is_file()]), draw)
    return then

  return fault


def exchanging(folder: str, pattern: str, then: Run) -> Fault:
  """Exchanges the names of two files or folders that stand side by side."""

  def fault(place: Place, draw: random.Random) -> Run:
    found = files(getattr(place, folder), pattern)
    pairs = [
      (one, other)
      for one in found
      for other in found
      if one.parent == other.parent and one.name < other.name
    ]
    exchange(*draw.choice(pairs))
    return then

  return fault


# --- parts, checkpoints, states ----------------------------------------------

PARTS = "records/*/*.parquet"
PARAMS = "checkpoints/[0-9a-f]*/**/*"
STATES = "checkpoints/unfinished/*/[0-9]*/**/*"


def duplicated(place: Place, draw: random.Random) -> Run:
  path = draw.choice(files(place.out, PARTS))
  shutil.copy(path, path.with_name(f"{draw.randbytes(10).hex()}.parquet"))
  return REPAIR


def in_another_table(place: Place, draw: random.Random) -> Run:
  path = draw.choice(files(place.out, PARTS))
  others = [p for p in path.parent.parent.iterdir() if p != path.parent]
  shutil.copy(path, draw.choice(others) / path.name)
  return REPAIR


def of_another_study(place: Place, draw: random.Random) -> Run:
  """A whole part, under its own name, of networks trained otherwise."""
  path = draw.choice(files(place.root / "other", PARTS))
  target = place.out / path.relative_to(place.root / "other")
  shutil.copy(path, target)
  return Run(
    undo=target.unlink if target.parent.name == "networks" else nothing
  )


def read_again(fault: Fault) -> Fault:
  """Spoils a checkpoint, and has it read: what was compressed is gone."""

  def both(place: Place, draw: random.Random) -> Run:
    shutil.rmtree(place.out / "records" / "compression")
    return fault(place, draw)

  return both


def no_checkpoint(place: Place, draw: random.Random) -> Run:
  shutil.rmtree(draw.choice(files(place.out, "checkpoints/[0-9a-f]*")))
  return REPAIR


# --- the machine -------------------------------------------------------------


def read_only(place: Place, draw: random.Random) -> Run:
  """A directory that may be read only; root, who may write, becomes another."""
  folders = [place.out, *(p for p in place.out.rglob("*") if p.is_dir())]
  closed = folders[: draw.choice([1, len(folders)])]
  subprocess.run(["chmod", "-R", "a+rwX", place.root], check=True)
  for folder in closed:
    folder.chmod(0o555)

  def undo() -> None:
    for folder in closed:
      folder.chmod(0o755)

  return Run(before=lambda: os.geteuid() or os.setuid(65534), undo=undo)


def full_disk(real: bool) -> Fault:
  """A file system with less room than the study, then with more."""

  def fault(place: Place, draw: random.Random) -> Run:
    kept = place.root / "kept"
    place.out.rename(kept) if place.out.exists() else kept.mkdir()
    place.out.mkdir()
    used = sum(4096 + p.stat().st_size for p in kept.rglob("*"))
    more = draw.randrange(4096, 400_000 if real else 300_000)
    kilobytes = (used + more) // 1024
    options = f"size={kilobytes}k"
    subprocess.run(
      ["mount", "-t", "tmpfs", "-o", options, "tmpfs", place.out], check=True
    )
    shutil.copytree(kept, place.out, dirs_exist_ok=True)

    def undo() -> None:
      options = "remount,size=64m"
      subprocess.run(["mount", "-o", options, place.out], check=True)

    return Run(undo=undo, real=real)

  return fault


def full_cache(place: Place, draw: random.Random) -> Run:
  """No file may grow beyond some size, in whatever folder."""
  shutil.rmtree(place.cache / "data")
  limit = draw.randrange(200, 12_000)

  def before() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

  return Run(before=before)


def failing(
  module: Any, name: str, calls: int, number: int, which: int
) -> None:
  """Has a function of a module fail, with an error of the system, after so many
  calls; `which` of its arguments is the file that the error names."""
  function, left = getattr(module, name), iter(range(calls))

  def call(*arguments, **options):
    if next(left, None) is None:
      raise OSError(number, os.strerror(number), arguments[which])
    return function(*arguments, **options)

  setattr(module, name, call)


def failing_rename(place: Place, draw: random.Random) -> Run:
  del place
  calls = draw.randrange(12)

  def before() -> None:
    failing(os, "replace", calls, errno.ENOSPC, which=1)

  return Run(before=before)


def other_clock(place: Place, draw: random.Random) -> Run:
  """A clock that is years wrong, and jumps back now and then."""
  del place
  shift, jump = draw.uniform(-1e9, 1e9), draw.uniform(0, 1e5)

  def before() -> None:
    now = time.time
    time.time = lambda: now() + shift - draw.choice([0, jump])

  return Run(before=before)


def little_memory(place: Place, draw: random.Random) -> Run:
  """An address space with room for so much more than what is loaded."""
  del place
  more = draw.randrange(10, 800) << 20

  def before() -> None:
    with open("/proc/self/statm") as file:
      now = int(file.read().split()[0]) * os.sysconf("SC_PAGESIZE")
    resource.setrlimit(resource.RLIMIT_AS, (now + more, now + more))

  return Run(before=before)


def little_device(place: Place, draw: random.Random) -> Run:
  """The device refuses what is larger than one network, or everything."""
  del place
  most = draw.choice([0, 1])

  def before() -> None:
    import jax

    from minarch_jax.engine import packs

    train = packs.train

    def refusing(session, pack, *arguments, **options):
      if len(pack.architectures) * len(pack.seeds) > most:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
      return train(session, pack, *arguments, **options)

    packs.train = refusing

  return Run(before=before)


def failing_worker(place: Place, draw: random.Random) -> Run:
  """A thread meets an error of the disk."""
  del place
  calls = draw.randrange(8)

  def before() -> None:
    from minarch_jax import records

    failing(records, "write", calls, errno.EIO, which=0)

  return Run(before=before)


def killed(seconds: float, *numbers: int) -> Fault:
  """Sends signals at a random moment of a run of so many seconds."""

  def fault(place: Place, draw: random.Random) -> Run:
    del place
    start = 0.0 if signal.SIGKILL in numbers else 0.3  # until it listens
    times = [draw.uniform(start, max(seconds, start))]
    times += [draw.uniform(0.0, 0.3) for _ in numbers[1:]]
    return Run(kill=list(zip(times, numbers, strict=True)))

  return fault


def stop_after(module: str, name: str, calls: int) -> Callable[[], None]:
  """Makes what ends the process after so many calls of a function."""

  def before() -> None:
    owner: Any = registries.resolve(module)
    function = getattr(owner, name)
    left = itertools.count(1)

    def counted(*arguments):
      found = function(*arguments)
      if next(left) == calls:
        os.kill(os.getpid(), signal.SIGTERM)
      return found

    setattr(owner, name, counted)

  return before


# --- images ------------------------------------------------------------------


def another_image(place: Place, draw: random.Random) -> Run:
  """The images change after a part of the networks is trained."""
  found = files(place.images, "*/*.png")
  path, kept = draw.choice(found), place.root / "kept.png"
  shutil.copy(path, kept)
  if draw.random() < 0.5:
    path.unlink()
  else:
    shutil.copy(
      draw.choice([p for p in found if p.parent != path.parent]), path
    )
  return Run(
    undo=lambda: shutil.copy(kept, path),
    expect="are another study's (of data with fingerprint",
  )


def damaged_image(how: Callable) -> Fault:
  def fault(place: Place, draw: random.Random) -> Run:
    path, kept = (
      draw.choice(files(place.images, "*/*.png")),
      place.root / "kept",
    )
    shutil.copy(path, kept)
    how(path, draw)
    return Run(undo=lambda: shutil.copy(kept, path), expect=path.name)

  return fault


def another_shape(path: pathlib.Path, draw: random.Random) -> None:
  from PIL import Image

  with Image.open(path) as image:
    image.resize((6, draw.choice([5, 7]))).save(path)


ANEW = Run()  # what is damaged is made again, unasked


def kinds(seconds: float, can_mount: bool) -> dict[str, Kind]:
  """Lists the kinds of faults for a study that takes so many seconds."""
  found = {}
  damages = {"a bit flipped": flip, "cut off": truncate, "empty": empty}
  damages["foreign"] = replace
  spoiled = {
    "part": ("whole", "out", PARTS, REPAIR),
    "study.json": ("half", "out", "study.json", REPAIR),
    "state in training": ("training", "out", STATES, ANEW),
    "cached images": ("whole", "cache", "data/*/*", ANEW),
    "cached program": ("", "cache", "programs/*-cache", ANEW),
    "cached machine": ("", "cache", "machine.json", ANEW),
  }
  for name, (base, folder, pattern, then) in spoiled.items():
    for damage, how in damages.items():
      fault = spoiling(folder, pattern, how, then)
      found[f"{name}, {damage}"] = Kind(base, fault)
  for damage, how in damages.items():
    fault = read_again(spoiling("out", PARAMS, how, REPAIR))
    found[f"checkpoint, {damage}"] = Kind("whole", fault)
  programs = exchanging("cache", "programs/*-cache", ANEW)
  found |= {
    "parts exchanged": Kind("whole", exchanging("out", PARTS, REPAIR)),
    "checkpoints exchanged": Kind(
      *("whole", read_again(exchanging("out", "checkpoints/*", REPAIR))),
    ),
    "cached images exchanged": Kind(
      "whole", exchanging("cache", "data/*/*", ANEW)
    ),
    "cached programs exchanged": Kind("", programs, 10),
    "part duplicated": Kind("whole", duplicated),
    "part in another table": Kind("whole", in_another_table),
    "part of another study": Kind("whole", of_another_study),
    "checkpoint lost": Kind("whole", read_again(no_checkpoint)),
    "part lost": Kind("whole", spoiling("out", PARTS, remove, ANEW)),
    "images changed": Kind("half", another_image),
    "image cut off": Kind("half", damaged_image(truncate), 3),
    "image of another shape": Kind("half", damaged_image(another_shape), 3),
    "read-only directory": Kind("half", read_only),
    "no room to cache": Kind("half", full_cache),
    "rename fails": Kind("", failing_rename),
    "clock wrong": Kind("half", other_clock),
    "out of memory": Kind("", little_memory, 10),
    "device out of memory": Kind("half", little_device, 4),
    "worker fails": Kind("", failing_worker),
    "kill -9": Kind("", killed(seconds, signal.SIGKILL), 50),
    "SIGTERM": Kind("", killed(seconds, signal.SIGTERM), 20),
    "SIGINT": Kind("", killed(seconds, signal.SIGINT), 20),
    "SIGINT twice": Kind("", killed(seconds, signal.SIGINT, signal.SIGINT), 5),
  }
  if can_mount:
    found["disk full"] = Kind("", full_disk(False), 10)
    found["disk full, report"] = Kind("whole", full_disk(True), 4)
  return found
