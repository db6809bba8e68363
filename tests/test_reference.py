"""The reference: every public name, built without a warning."""

import html
import pathlib
import re
import subprocess
import sys

import pytest

import minarch_jax as ma

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  pytest.importorskip("pdoc", reason="the extra reference is not installed")
  folder = tmp_path_factory.mktemp("reference")
  done = subprocess.run(
    [sys.executable, ROOT / ".ci" / "reference", folder],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0 and not done.stderr, done.stderr
  return folder / "minarch_jax.html"


def test_every_public_name_is_explained(built):
  text = built.read_text()
  ids = set(re.findall(r'id="([\w.]+)"', text))
  for name in set(ma.__all__) - ids:
    module = getattr(ma, name).__name__.replace(".", "/")
    assert (built.parent / f"{module}.html").is_file(), name
  for name in ("prune", "train_many", "recommend"):
    first = getattr(ma, name).__doc__.partition("\n")[0]
    assert first in html.unescape(re.sub(r"<[^>]+>", "", text)), name


def test_links_inside_resolve(built):
  text = built.read_text()
  ids = set(re.findall(r'id="([\w.-]+)"', text))
  for link in re.findall(r'href="#([\w.-]+)"', text):
    assert link in ids, link
