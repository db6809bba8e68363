"""Ctrl-C at a terminal, once and twice, of a process that listens."""

import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from tests.started import ROOT

STAGE = """
import time
from experiments import common
from minarch_jax import flags
flags.define("out")
def stage(settings):
  print("working", flush=True)
  try:
    time.sleep(60)
  finally:
    print("keeping", flush=True)
    time.sleep({seconds})
common.run(stage, trains=False)
"""


class Terminal:
  """A process whose terminal is a pseudo-terminal."""

  def __init__(self, folder, seconds):
    self._own, other = pty.openpty()
    self._process = subprocess.Popen(
      # In a session of its own, whose terminal it is; JAX forbids to do so
      # between fork and exec.
      ["setsid", "--ctty", sys.executable, "-c", STAGE.format(seconds=seconds)],
      cwd=folder,
      env=os.environ | {"PYTHONPATH": str(ROOT)},
      stdin=other,
      stdout=other,
      stderr=other,
    )
    os.close(other)
    self.shown = ""

  def wait_for(self, text):
    deadline = time.monotonic() + 120
    while text not in self.shown:
      assert time.monotonic() < deadline
      self.shown += os.read(self._own, 4096).decode()

  def press(self, key):
    os.write(self._own, key)

  def ended(self):
    code = self._process.wait(120)
    try:
      while text := os.read(self._own, 4096):
        self.shown += text.decode()
    except OSError:  # all is read, and nobody writes any more
      pass
    os.close(self._own)
    return code


CTRL_C = b"\x03"


def test_one_ctrl_c_keeps_what_there_is(tmp_path):
  terminal = Terminal(tmp_path, seconds=0.1)
  terminal.wait_for("working")
  terminal.press(CTRL_C)
  assert terminal.ended() == os.EX_TEMPFAIL
  assert "once more ends at once" in terminal.shown
  assert "Go on with: " in terminal.shown
  assert "Traceback" not in terminal.shown


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_at_once(tmp_path, second):
  terminal = Terminal(tmp_path, seconds=600)
  terminal.wait_for("working")
  terminal.press(CTRL_C)
  terminal.wait_for("keeping")
  start = time.monotonic()
  if second == signal.SIGINT:
    terminal.press(CTRL_C)
  else:
    terminal._process.send_signal(second)
  assert terminal.ended() == -second
  assert time.monotonic() - start < 60
  assert "Traceback" not in terminal.shown
