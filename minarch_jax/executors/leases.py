"""Leases: processes that share a results directory share its work.

<out>/leases/<name> holds the name of its owner and a number that the owner
raises while it lives. Who finds the same content for long enough, by a clock of
its own, takes the lease over; on the owner's own machine it is seen at once
that the owner is gone. No time is ever compared with that of another machine,
and nothing is needed of a file system but that a file is created by one alone.

Nothing depends on a lease but time: part files are written at once and are
equal whoever writes them, so a lease that is lost while its owner lives, as by
a process that was stopped for a minute, has work done twice.
"""

from collections.abc import Callable, Iterator
import contextlib
import functools
import os
import threading
import time
import uuid

RENEW_SECONDS = 10.0
PATIENCE_SECONDS = 60.0  # a file system may show a change late
LOOK_SECONDS = 0.2

FOLDER = "leases"


class Leases:
  """The leases of a process in a results directory, renewed while it lives."""

  def __init__(self, out: str, clock: Callable[[], float] = time.monotonic):
    self._folder, self._clock = os.path.join(out, FOLDER), clock
    self._owner = f"{_process(os.getpid())} {uuid.uuid4().hex}"
    self._mine: set[str] = set()
    self._seen: dict[str, tuple[str, float]] = {}  # of others: what, since when
    self._lock, self._ended = threading.Lock(), threading.Event()
    self._renewer = threading.Thread(target=self._renew_all, daemon=True)
    self._count = 0

  def claim(self, name: str) -> bool:
    """Takes a lease; False where another process that lives has it."""
    if self._create(name):
      return True
    content = self._read(self._path(name))
    if content is None:  # given back just now
      return self._create(name)
    now = self._clock()
    before, since = self._seen.get(name, (None, now))
    if content != before:
      since = now
      self._seen[name] = (content, now)
    if not (now - since >= PATIENCE_SECONDS or _is_dead(content)):
      return False
    return self._take_away(name, content) and self._create(name)

  def release(self, name: str) -> None:
    """Gives a lease back."""
    with self._lock:
      self._mine.discard(name)
      if self._is_mine(name):
        with contextlib.suppress(FileNotFoundError):
          os.remove(self._path(name))

  def close(self) -> None:
    """Gives all leases back; removes the folder when nobody has any."""
    self._ended.set()
    for name in list(self._mine):
      self.release(name)
    if self._renewer.is_alive():
      self._renewer.join()
    self._clear()
    with contextlib.suppress(OSError):  # not there, or not empty
      os.rmdir(self._folder)

  def _clear(self) -> None:
    """Removes leases of what was done when its owner died."""
    with contextlib.suppress(OSError):
      for name in os.listdir(self._folder):
        if _is_dead(self._read(self._path(name)) or ""):
          os.remove(self._path(name))

  def _path(self, name: str) -> str:
    return os.path.join(self._folder, name)

  def _read(self, path: str) -> str | None:
    try:
      with open(path) as file:
        return file.read()
    except FileNotFoundError:
      return None

  def _is_mine(self, name: str) -> bool:
    return (self._read(self._path(name)) or "").startswith(self._owner)

  def _create(self, name: str) -> bool:
    with self._lock:
      self._mine.add(name)  # first: whatever comes, it is given back
      if not self._renewer.is_alive():
        self._renewer.start()
    try:
      self._write_new(name)
    except FileExistsError:
      self._mine.discard(name)
      return False
    return True

  def _write_new(self, name: str) -> None:
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    while True:
      os.makedirs(self._folder, exist_ok=True)
      # The last one out may remove the folder meanwhile.
      with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(self._path(name), flags)
        break
    with os.fdopen(descriptor, "w") as file:
      file.write(self._content())

  def _take_away(self, name: str, content: str) -> bool:
    """Removes a lease that its owner left; one process succeeds."""
    path = self._path(name)
    aside = f"{path}.{uuid.uuid4().hex}"
    try:
      os.rename(path, aside)
      if self._read(aside) == content:
        os.remove(aside)
        return True
      os.rename(aside, path)  # another took it over before
    except FileNotFoundError:
      pass
    return False

  def _renew_all(self) -> None:
    while not self._ended.wait(RENEW_SECONDS):
      self._count += 1
      for name in list(self._mine):
        with self._lock, contextlib.suppress(OSError):
          if name in self._mine and self._is_mine(name):
            self._renew(name)

  def _renew(self, name: str) -> None:
    # In place, and only the number differs: whatever part of it is read, the
    # owner is whole.
    descriptor = os.open(self._path(name), os.O_WRONLY)
    with os.fdopen(descriptor, "w") as file:
      file.write(self._content())

  def _content(self) -> str:
    return f"{self._owner} {self._count:012}"


def exists(out: str, name: str) -> bool:
  """Says whether somebody has a lease."""
  return os.path.exists(os.path.join(out, FOLDER, name))


@contextlib.contextmanager
def alone(out: str, name: str) -> Iterator[None]:
  """Keeps others out of what is read, changed and written under a name."""
  leases = Leases(out)
  while not leases.claim(name):
    time.sleep(LOOK_SECONDS)
  try:
    yield
  finally:
    leases.close()


# --- is the owner alive? -----------------------------------------------------


def _process(pid: int) -> str:
  """Names a process of this machine: where, number, when it started."""
  return f"{_machine()} {pid} {_started(pid)}"


@functools.cache
def _machine() -> str:
  """Names what process numbers belong to; "-" where that is not known."""
  try:
    with open("/proc/sys/kernel/random/boot_id") as file:
      return f"{file.read().strip()}/{os.readlink('/proc/self/ns/pid')}"
  except OSError:
    return "-"


def _started(pid: int) -> str:
  """Says when a process started; "-" where it is no more or is not known."""
  try:
    with open(f"/proc/{pid}/stat") as file:
      state, *rest = file.read().rpartition(")")[2].split()
  except OSError:
    return "-"
  return "-" if state in "ZX" else rest[18]


def _is_dead(content: str) -> bool:
  """Says whether the owner of a lease is known to be no more."""
  where, pid, started, *_ = [*content.split(), "", "", ""]
  if where != _machine() or "-" in (where, started) or not pid.isdigit():
    return False
  try:
    os.kill(int(pid), 0)
  except ProcessLookupError:
    return True
  except PermissionError:  # of another user, who may hide when it started
    return False
  return _started(int(pid)) != started
