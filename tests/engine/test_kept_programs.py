"""Programs of earlier runs are what was kept, or are compiled again."""

import pytest

from minarch_jax.engine import kept_programs


@pytest.fixture
def kept(tmp_path):
  """Two programs that a process has sealed; the check forgets what it saw."""
  for name in "ab":
    (tmp_path / f"{name}-cache").write_bytes(f"program {name}".encode() * 9)
  kept_programs.seal(str(tmp_path))
  kept_programs.check.cache_clear()
  return tmp_path


def left(folder):
  kept_programs.check(str(folder))
  return {path.name for path in folder.iterdir()}


WHOLE = {f"{name}-cache{end}" for name in "ab" for end in ("", ".sha256")}


def test_what_is_whole_stays(kept):
  assert left(kept) == WHOLE


def test_a_program_under_another_name_is_removed(kept):
  """With its seal, or without."""
  one, other = kept / "a-cache", kept / "b-cache"
  content = one.read_bytes(), other.read_bytes()
  one.write_bytes(content[1])
  assert left(kept) == {"b-cache", "b-cache.sha256"}
  other.write_bytes(content[0])
  (kept / "a-cache.sha256").write_text("0" * 64)
  kept_programs.check.cache_clear()
  assert left(kept) == {"a-cache.sha256"}


@pytest.mark.parametrize("name", ["a-cache", "a-cache.sha256"])
@pytest.mark.parametrize("content", [b"", b"program ", b"\xff" * 9])
def test_what_is_damaged_is_removed(kept, name, content):
  (kept / name).write_bytes(content)
  assert left(kept) == {"b-cache", "b-cache.sha256"}


def test_what_a_killed_process_left_is_sealed_by_the_next(kept):
  (kept / "c-cache").write_bytes(b"program c")
  assert left(kept) == WHOLE | {"c-cache"}
  kept_programs.seal(str(kept))
  (kept / "c-cache").write_bytes(b"program d")
  kept_programs.check.cache_clear()
  assert left(kept) == WHOLE


def test_a_folder_that_is_not_there_is_nothing(tmp_path):
  kept_programs.check(str(tmp_path / "none"))
  assert not list(tmp_path.iterdir())
