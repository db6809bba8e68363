"""Parquet files that prove what they hold before anything parses them.

A Parquet file is data, a footer that says where the data lie, the footer's
length and "PAR1". Readers find the footer from the end, so bytes between the
data and the footer are skipped by all of them. There stands a mark: a name, a
format version and the SHA-256 of that name and of every other byte of the file.
A flipped bit, a missing end or two exchanged names are found here; a parser
would return other numbers, or take a length for true and abort the process.
"""

import hashlib
import struct

from minarch_jax.config import ConfigError

_END = b"PAR1"
_MAGIC = b"minarch-jax"
_MARK = struct.Struct(f"<{len(_MAGIC)}sH32s")
_TAIL = struct.Struct("<I4s")  # the footer's length, then _END


def marked(content: bytes, name: str, version: int) -> bytes:
  """Marks a Parquet file, which keeps its rows for every reader.

  Args:
    content: the file; not marked yet.
    name: what the file is; it can be read under this name only.
    version: of what its columns mean.
  """
  at = _footer(content)
  data, footer = content[:at], content[at:]
  digest = _digest(name, version, data, footer)
  return b"".join((data, _MARK.pack(_MAGIC, version, digest), footer))


def read(path: str, name: str, version: int) -> bytes:
  """Reads a marked file, to be parsed by a reader of Parquet.

  Raises:
    ConfigError: it is not what was written under this name.
  """
  with open(path, "rb") as file:
    content = file.read()
  start = (_footer(content) or 0) - _MARK.size
  if start < 0:
    raise damaged(path, "it is empty, cut off or no Parquet file")
  magic, found, digest = _MARK.unpack_from(content, start)
  if magic != _MAGIC:
    raise damaged(path, "it carries no mark of this project")
  whole = memoryview(content)
  rest = whole[:start], whole[start + _MARK.size :]
  if digest != _digest(name, found, *rest):
    raise damaged(path, "its bytes or its name are not those it was given")
  if found != version:
    raise ConfigError(
      f"{path} was written by {'a newer' if found > version else 'an older'} "
      f"version of this package (records of schema {found}, this one reads "
      f"{version}); read it with that version, or choose another --out"
    )
  return content


def damaged(path: str, why: str) -> ConfigError:
  """Makes the error about a file that must not be used."""
  return ConfigError(
    f"{path} cannot be used: {why}; the command that made it sets such files "
    "aside with --repair (nothing is deleted) and computes anew what they held"
  )


def _footer(content: bytes) -> int | None:
  """Where the footer begins; None where there is none."""
  if len(content) < _TAIL.size or content[-4:] != _END:
    return None
  length, _ = _TAIL.unpack_from(content, len(content) - _TAIL.size)
  return max(len(content) - _TAIL.size - length, 0)


def _digest(name: str, version: int, *parts: bytes | memoryview) -> bytes:
  digest = hashlib.sha256(f"{name} {version} ".encode())
  for part in parts:
    digest.update(part)
  return digest.digest()
