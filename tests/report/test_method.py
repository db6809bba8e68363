"""The definitions that ship: complete, linked, and cited by what exists."""

import pathlib
import re

import pytest

import minarch_jax
from minarch_jax import config
from minarch_jax.analysis.claims import verdicts
from minarch_jax.report import method, sections
from tests.report import studies

SOURCE = method.resource("method.md")
IDS = studies.Reader(method.render()).ids


def test_every_heading_has_its_own_address():
  headings = re.findall(r"^#+ (.*)$", SOURCE, re.MULTILINE)
  assert IDS == [method.anchor(heading) for heading in headings]
  assert len(set(IDS)) == len(IDS)


@pytest.mark.parametrize("name", sections.SECTIONS)
def test_sections_link_to_headings_that_exist(name):
  anchor = sections.SECTIONS[name].method
  assert not anchor or anchor in IDS


@pytest.mark.parametrize("name", verdicts.CLAIMS)
def test_every_claim_is_defined_in_its_words(name):
  statement = verdicts.CLAIMS[name].statement
  assert f"### {name}: {statement[0].upper()}{statement[1:]}" in SOURCE
  assert method.link(name) == f"method.html#{name.lower()}"


def test_every_threshold_is_explained_once_and_no_other():
  rows = re.findall(r"^\| `--(\w+)` \| \w.* \|$", SOURCE, re.MULTILINE)
  assert sorted(rows) == sorted(config.THRESHOLDS)
  assert set(re.findall(r"`--(\w+)`", SOURCE)) == set(config.THRESHOLDS)


def test_the_page_is_whole_and_loads_nothing():
  text = method.render()
  reader = studies.Reader(text)
  assert not reader.open and not reader.loads
  assert reader.links == ["index.html"]
  assert "<table>" in text and "[P]" in text and "[R]" in text and "[O]" in text


def test_code_cites_headings_that_exist():
  package = pathlib.Path(minarch_jax.__file__).parent
  cited = set()
  for path in package.rglob("*.py"):
    cited |= set(re.findall(r"method\.md#([\w-]+)", path.read_text()))
  assert cited and cited <= set(IDS)
