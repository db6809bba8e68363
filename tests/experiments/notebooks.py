"""Reads notebooks as they are committed, and runs them."""

import copy
import json
import os
import pathlib
import sys

import jax
import nbclient
import nbformat
import pytest

ROOT = str(pathlib.Path(__file__).parents[2])
FOLDER = os.path.join("experiments", "notebooks")
NAMES = [p.stem for p in sorted(pathlib.Path(ROOT, FOLDER).glob("*.ipynb"))]

KERNEL = "this-interpreter"
STRICT = "import warnings; warnings.simplefilter('error')"


def read(name: str):
  path = os.path.join(ROOT, FOLDER, f"{name}.ipynb")
  return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def code_of(notebook) -> list[str]:
  return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def _write_kernel(folder: str, caches: str) -> None:
  """Describes a kernel of this interpreter, whether one is installed or not."""
  paths = [ROOT, os.environ.get("PYTHONPATH")]
  description = {
    "argv": [sys.executable, "-m", "ipykernel_launcher"]
    + ["-f", "{connection_file}"],
    "display_name": "this interpreter",
    "language": "python",
    "env": {
      "PYTHONPATH": os.pathsep.join(filter(None, paths)),
      "IPYTHONDIR": os.path.join(folder, "ipython"),
      "JAX_PLATFORMS": "cpu",
      "JAX_COMPILATION_CACHE_DIR": os.path.join(caches, "programs"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "XDG_CACHE_HOME": caches,
    },
  }
  os.makedirs(os.path.join(folder, "kernels", KERNEL))
  path = os.path.join(folder, "kernels", KERNEL, "kernel.json")
  with open(path, "w") as file:
    json.dump(description, file)


def execute(name: str, folder: pathlib.Path, cache, probe: str, **changes: str):
  """Runs a notebook where no study was made.

  Args:
    name: of the notebook.
    folder: an empty one.
    cache: pytest's, which keeps compiled programs for the next time.
    probe: a cell to run after the last.
    **changes: texts of the cells to run instead, old=new, by any name.

  Returns:
    The notebook with its outputs, also where cells failed.
  """
  where = folder / FOLDER
  where.mkdir(parents=True)
  version = f"{jax.__version__}-py{sys.version_info.minor}"
  _write_kernel(str(folder), str(cache.mkdir(f"notebook-{version}")))
  notebook = copy.deepcopy(read(name))
  for change in changes.values():
    old, new = change.split(" -> ")
    for cell in notebook.cells:
      cell.source = cell.source.replace(old, new)
  notebook.cells.insert(0, nbformat.v4.new_code_cell(STRICT))
  notebook.cells.append(nbformat.v4.new_code_cell(probe))
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("JUPYTER_PATH", str(folder))
    patch.setenv("JUPYTER_RUNTIME_DIR", str(folder / "runtime"))
    client = nbclient.NotebookClient(
      notebook,
      kernel_name=KERNEL,
      resources={"metadata": {"path": str(where)}},
      timeout=300,
      allow_errors=True,
    )
    return client.execute()


def assert_silent(executed) -> None:
  """No cell failed, and none warned."""
  for cell in executed.cells:
    if cell.cell_type == "code":
      assert cell.execution_count, f"{cell.id} did not run"
    for output in cell.get("outputs", []):
      assert output.output_type != "error", f"{cell.id}: {output.evalue}"
      assert "Warning" not in output.get("text", ""), cell.id


def charts(executed) -> set[str]:
  """The cells that drew a chart without a network."""
  return {
    cell.id
    for cell in executed.cells
    for output in cell.get("outputs", [])
    if output.get("data", {}).get("image/svg+xml", "").startswith("<svg")
  }


def facts(executed):
  """What the probe printed."""
  return json.loads(executed.cells[-1].outputs[0].text)
