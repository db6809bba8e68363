"""Progress with an estimate of the remaining time."""

import sys
import threading
import time

import rich.console
import rich.progress

QUIET_SECONDS = 10.0  # between lines where there is no terminal


def heading(text: str) -> None:
  """Says what the following progress is about."""
  print(text, file=sys.stderr, flush=True)


class Progress:
  """A bar on a terminal, a line now and then elsewhere; nothing when fast.

  `total` is predicted work in any unit; the remaining time follows from how
  fast the work really goes.
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
        rich.progress.TimeRemainingColumn(elapsed_when_finished=False),
        console=rich.console.Console(stderr=True),
      )
      self._task = self._bar.add_task(label, total=self._total)

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
    self._done += amount
    if self._bar:
      self._bar.update(self._task, completed=self._done)
      return
    now = time.monotonic()
    if now - self._spoken >= QUIET_SECONDS:
      self._spoken = now
      share = min(self._done / self._total, 1.0)
      left = (now - self._start) * (1 - share) / max(share, 1e-9)
      print(
        f"{self._label}: {share:.0%}, about {_clock(left)} left",
        file=sys.stderr,
        flush=True,
      )


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return (
    f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
  )
