"""Files and names of strangers run nothing, leave no folder, take no memory."""

import ast
import json
import os
import pathlib
import pickle
import re
import shutil
import subprocess
import tracemalloc
import zipfile

import numpy as np
import polars as pl
import pytest

import minarch_jax as ma
from minarch_jax import quantization, records, report
from minarch_jax.config import ConfigError
from minarch_jax.data import cache, own, sources
from minarch_jax.quantization.networks import files
from minarch_jax.stages import repair
from tests.report import studies

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = [
  path
  for folder in ("minarch_jax", "experiments")
  for path in (ROOT / folder).rglob("*.py")
]


# --- nothing is unpickled ----------------------------------------------------

# They speak through pipes with processes that they have started themselves.
PIPES = {"report/drawing.py", "report/workers.py"}
UNPICKLING = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_source_unpickles(path):
  for node in ast.walk(ast.parse(path.read_text())):
    names = []
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      names = [node.module or ""]
    if not any(str(path).endswith(name) for name in PIPES):
      assert not UNPICKLING & {name.split(".")[0] for name in names}
    if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
      assert isinstance(node.value, ast.Constant) and node.value.value is False


class Hostile:
  """Makes a file wherever it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return open, (str(self.path), "w")


def objects(path):
  """An array that numpy would have to unpickle, and that is hostile."""
  return np.array([Hostile(path)] * 3, object)


@pytest.mark.parametrize("name", ["x", "y"])
def test_objects_in_a_file_of_images_are_refused(tmp_path, name):
  arrays = {"x": np.zeros((3, 4, 4), np.uint8), "y": np.arange(3)}
  arrays[name] = objects(tmp_path / "pwned")
  path = str(tmp_path / "own.npz")
  np.savez(path, **arrays)  # pyright: ignore
  with pytest.raises(ConfigError, match="holds objects"):
    ma.load(path)
  assert not (tmp_path / "pwned").exists()


def test_objects_in_the_cache_are_never_read(tmp_path, monkeypatch):
  monkeypatch.setenv("MINARCH_CACHE_DIR", str(tmp_path))
  images = np.zeros((3, 2, 2, 1), np.uint8)
  built = sources.raw(images, np.arange(3, dtype=np.int32))
  cache.fetch("key", lambda: built)
  np.save(tmp_path / "data" / "key" / "x.npy", objects(tmp_path / "pwned"))
  found = cache.fetch("key", lambda: built)
  np.testing.assert_array_equal(found.x, images)
  assert not (tmp_path / "pwned").exists()


def test_a_hostile_checkpoint_or_description_is_refused(copy):
  id = next((copy / "records" / "networks").iterdir()).stem
  hostile = pickle.dumps(Hostile(copy / "pwned"))
  for path in (copy / "checkpoints" / id).rglob("*"):
    if path.is_file():
      path.write_bytes(hostile)
  (copy / "study.json").write_bytes(hostile)
  assert f"checkpoints/{id}" in repair.set_aside(str(copy))
  assert not (copy / "pwned").exists()


# --- names stay inside -------------------------------------------------------

ESCAPES = ["../../outside", "/tmp/outside", "..", "a/../../b", "a\nb"]


@pytest.mark.parametrize("name", ESCAPES)
def test_names_in_records_write_nothing_elsewhere(tmp_path, name):
  out = tmp_path / "folder" / "out"
  found = studies.small(families=("dnn",), num_architectures=2, num_epochs=2)
  named = (t.with_columns(dataset=pl.lit(name)) for t in found)
  studies.save(out, records.Records(*named))
  report.build(str(out), studies.CONFIG)
  assert [path.name for path in tmp_path.iterdir()] == ["folder"]
  assert [path.name for path in (tmp_path / "folder").iterdir()] == ["out"]
  left = {path.name for path in out.iterdir()}
  assert left <= {"records", "report", "study.json"}


@pytest.mark.parametrize(
  "name", ["..", "...", "..\\..", ".hidden", "unfinished"]
)
def test_a_part_of_any_name_is_set_aside_within(copy, name):
  before = {path for path in copy.rglob("*") if path.is_file()}
  (copy / "records" / "networks" / f"{name}.parquet").write_bytes(b"PAR1")
  repair.set_aside(str(copy))
  assert all(path.exists() for path in before)
  assert {path.name for path in copy.parent.iterdir()} == {copy.name}


@pytest.mark.parametrize("name", ["dnn:../../x", "dnn:3/../4", "../dnn:3"])
def test_an_architecture_is_no_path(name):
  with pytest.raises(ValueError, match="is not|no family|dnn"):
    ma.Architecture.parse(name)


# --- sizes are checked before memory is taken --------------------------------


def model_file(path, change):
  """A model file whose hash is right, whatever was changed."""
  weights = {"out": {"kernel": np.eye(8, dtype=np.float32)}}
  header, payload = files.content(quantization.quantize(weights, 4))
  header = json.loads(header[8:])
  del header["__metadata__"]["sha256"]
  payload = change(header, payload) or payload
  header["__metadata__"]["sha256"] = files._digest(header, payload)
  text = json.dumps(header).encode()
  path.write_bytes(len(text).to_bytes(8, "little") + text + payload)
  return str(path)


def described(**changes):
  def change(header, payload):
    metadata = header["__metadata__"]
    how = json.loads(metadata["quantized"])
    how["out/kernel"] |= changes
    metadata["quantized"] = json.dumps(how)

  return change


def placed(**changes):
  def change(header, payload):
    header["out/kernel:scale"] |= changes

  return change


def emptied(header, payload):
  for key in [key for key in header if key != "__metadata__"]:
    del header[key]
  return b""


HUGE = 2**40
WRONG = [
  described(shape=[HUGE, 8]),
  described(shape=[HUGE, 8], bitmap=True),
  described(shape=[-8, -8]),
  described(shape=[8, 8, 0]),
  described(shape="88"),
  described(shape=[10**400]),
  described(inputs=[7]),
  described(group=-3),
  described(format="int2"),
  described(dtype="object"),
  placed(shape=[HUGE]),
  placed(data_offsets=[0, HUGE]),
  placed(data_offsets=[-8, 0]),
  placed(dtype="F64"),
  emptied,
]


@pytest.mark.parametrize("change", WRONG, ids=range(len(WRONG)))
def test_a_model_file_that_lies_is_refused(tmp_path, change):
  path = model_file(tmp_path / "model.safetensors", change)
  tracemalloc.start()
  try:
    with pytest.raises(ValueError, match=r"model.safetensors (is not|holds)"):
      ma.load_model(path)
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert peak < 2**25


def test_a_model_file_that_does_not_lie_is_read(tmp_path):
  path = model_file(tmp_path / "model.safetensors", lambda *unused: None)
  back = quantization.dequantize(ma.load_model(path))
  np.testing.assert_allclose(back["out"]["kernel"], np.eye(8), atol=1e-6)


def test_a_header_of_any_length_is_refused(tmp_path):
  path = tmp_path / "model.safetensors"
  for length in (2**63, 2**40, 0):
    path.write_bytes(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match="not a whole model file"):
      ma.load_model(str(path))
  nested = b"[" * 10**5
  path.write_bytes(len(nested).to_bytes(8, "little") + nested)
  with pytest.raises(ValueError, match="not a whole model file"):
    ma.load_model(str(path))


def test_images_that_a_file_does_not_hold_take_no_memory(tmp_path):
  path, header = tmp_path / "own.npz", tmp_path / "header"
  with header.open("wb") as file:
    said = {"descr": "|u1", "fortran_order": False, "shape": (HUGE, 28, 28)}
    np.lib.format.write_array_header_1_0(file, said)
  with zipfile.ZipFile(path, "w") as archive:
    archive.write(header, "x.npy")
    archive.write(header, "y.npy")
  with pytest.raises(ConfigError, match="says that it holds"):
    own.source_of(str(path)).describe(str(path), None)


# --- the page ----------------------------------------------------------------

BROWSER = next(
  filter(None, map(shutil.which, ("chromium", "chromium-browser"))), ""
)
RUNS = "document.title='pwned';document.body.id='pwned'"
STRINGS = [
  f'<img src=x onerror="{RUNS}">',
  f"</script><script>{RUNS}</script>",
  f"\"><svg onload={RUNS}>'",
  f"</style></svg><script>{RUNS}</script>",
  f"javascript:{RUNS}",
  "{{ 7*7 }}{% raw %}",
]


@pytest.mark.skipif(not BROWSER, reason="no chromium")
def test_no_string_runs_in_a_browser(tmp_path):
  """Names of data sets, and whatever stands in study.json."""
  names = tuple(STRINGS)
  found = studies.small(
    datasets=names,
    plateaus=(0.9,) * len(names),
    families=("dnn",),
    num_architectures=3,
    num_epochs=2,
  )
  study = {
    "datasets": {name: {"test_note": f"{name} note"} for name in names},
    "devices": STRINGS,
    "git_revision": STRINGS[0],
    STRINGS[1]: {STRINGS[0]: STRINGS[2]},
  }
  out = studies.save(tmp_path, found, study)
  built = report.build(out, studies.CONFIG)
  text = dumped(built.page)
  assert "7*7" in text and "pwned" in text  # as text, it is there
  assert "<title>pwned" not in text and 'id="pwned"' not in text
  template = pathlib.Path(report.__file__).with_name("page.html").read_text()
  assert text.count("<script") == template.count("<script")
  outside = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
  assert "<img" not in outside


def dumped(page):
  """The document as a browser has it after its scripts have run."""
  done = subprocess.run(
    [BROWSER, "--headless", "--no-sandbox", "--disable-gpu"]
    + ["--disable-background-networking", "--virtual-time-budget=2000"]
    + ["--dump-dom", f"file://{os.path.abspath(page)}"],
    capture_output=True,
    text=True,
    timeout=120,
    check=True,
  )
  return done.stdout


@pytest.mark.skipif(not BROWSER, reason="no chromium")
def test_the_browser_would_run_such_a_string(tmp_path):
  """Otherwise the test above could not fail."""
  page = tmp_path / "page.html"
  page.write_text(f"<html><body>{STRINGS[0]}</body></html>")
  assert 'id="pwned"' in dumped(page)
