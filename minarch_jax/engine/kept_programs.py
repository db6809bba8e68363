"""Sees that the compiled programs of earlier runs are those that were kept.

JAX finds a program by the name of its file and does not ask what is in there: a
file that holds another program ends the process, or computes other numbers. So
each file gets a seal beside it, a hash of its name and bytes, when the process
that wrote it ends. What does not fit its seal is removed before JAX looks, and
compiled again. A file without a seal is of a process that was killed; JAX
checks the sum that its compression left.
"""

import atexit
import contextlib
import functools
import glob
import hashlib
import os

ENDING, SEAL = "-cache", ".sha256"


@functools.cache
def check(directory: str) -> None:
  """Removes what does not fit its seal, and seals the rest at the end.

  Once for each directory. What cannot be read or written is left alone.
  """
  for path in _programs(directory):
    with contextlib.suppress(OSError):
      if _sealed(path) not in (None, _seal(path)):
        os.remove(path)
        os.remove(path + SEAL)
  atexit.register(seal, directory)


def seal(directory: str) -> None:
  """Writes the seals that are missing."""
  for path in _programs(directory):
    if os.path.exists(path + SEAL):
      continue
    with contextlib.suppress(OSError):
      text = _seal(path)
      temporary = f"{path}{SEAL}.{os.getpid()}"
      with open(temporary, "w") as file:
        file.write(text)
      os.replace(temporary, path + SEAL)


def _programs(directory: str) -> list[str]:
  return glob.glob(os.path.join(glob.escape(directory), f"*{ENDING}"))


def _sealed(path: str) -> str | None:
  try:
    with open(path + SEAL, encoding="ascii", errors="replace") as file:
      return file.read()
  except FileNotFoundError:
    return None


def _seal(path: str) -> str:
  with open(path, "rb") as file:
    content = hashlib.file_digest(file, "sha256").digest()
  name = os.path.basename(path).encode()
  return hashlib.sha256(name + b" " + content).hexdigest()
