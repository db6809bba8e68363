"""Progress with an estimate of the remaining time."""

import sys
import threading
import time

import rich.console
import rich.progress

QUIET_SECONDS = 10.0  # between lines where there is no terminal
TRUST_SECONDS = 10.0  # of a forecast: as much as so long a look at the work


def say(text: str) -> None:
  """Tells whoever watches, beside the progress."""
  print(text, file=sys.stderr, flush=True)


class Progress:
  """A bar on a terminal, a line now and then elsewhere; nothing when fast.

  `total` is predicted seconds; the remaining time follows from them at first,
  and then from how fast the work really goes.
  """

  def __init__(self, label: str, total: float):
    self._label, self._total, self._done = label, max(total, 1e-9), 0.0
    self._start = self._spoken = time.monotonic()
    self._bar, self._lock = None, threading.Lock()
    if sys.stderr.isatty() and total > 0:
      self._bar = rich.progress.Progress(
        rich.progress.TextColumn("{task.description:>9}"),
        rich.progress.BarColumn(),
        rich.progress.TaskProgressColumn(),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TextColumn("left"),
        rich.progress.TextColumn("{task.fields[left]}"),
        console=rich.console.Console(stderr=True),
      )
      self._task = self._bar.add_task(
        label, total=self._total, left=clock(self._total)
      )

  def __enter__(self) -> "Progress":
    if self._bar:
      self._bar.start()
    return self

  def __exit__(self, *unused) -> None:
    if self._bar:
      self._bar.stop()

  def advance(self, amount: float) -> None:
    """Counts finished work; threads may share one progress."""
    with self._lock:
      self._advance(amount)

  def _advance(self, amount: float) -> None:
    self._done = min(self._done + amount, self._total)
    now = time.monotonic()
    pace = (now - self._start + TRUST_SECONDS) / (self._done + TRUST_SECONDS)
    left = clock((self._total - self._done) * pace)
    if self._bar:
      self._bar.update(self._task, completed=self._done, left=left)
      return
    if now - self._spoken >= QUIET_SECONDS:
      self._spoken = now
      print(
        f"{self._label}: {self._done / self._total:.0%}, about {left} left",
        file=sys.stderr,
        flush=True,
      )


def clock(seconds: float) -> str:
  """Writes seconds as 0:59, 1:00 or 1:00:00."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return (
    f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
  )
