"""Metadata of minarch_jax; tool settings are in pyproject.toml.

Lower bounds are the oldest versions the tests have passed on, under Python
3.11; there are no upper bounds. To lower one, install that very version and
run the tests.
"""

import pathlib
import re

import setuptools

HERE = pathlib.Path(__file__).parent


def version() -> str:
  """Reads the version without importing the package, which is not built yet."""
  text = (HERE / "minarch_jax" / "__init__.py").read_text()
  return re.findall(r'^__version__ = "(.+?)"', text, re.MULTILINE)[0]


REQUIRED = [
  "absl-py>=2.5",
  "altair>=6.3",
  "array_record>=0.8.3",
  "chex>=0.1.92",
  "flax>=0.12.8",
  "importlib_resources>=6.4",  # imported, not declared, by tfds
  "jax>=0.10.2",
  "jinja2>=3.1.6",
  "markdown-it-py>=4",
  "numpy>=2.1",
  "optax>=0.2.8",
  "orbax-checkpoint>=0.12.8",
  "pillow>=11",  # tfds decodes PNG with it where TensorFlow is absent
  "polars>=2.1",
  "pyarrow>=26",
  "rich>=15",
  "scikit-learn>=1.7",
  "scipy>=1.17",
  "tensorflow-datasets>=4.9.10",
  "vl-convert-python>=1.9",
]

NOTEBOOK = ["ipykernel>=7", "nbclient>=0.10", "nbformat>=5.10"]

REFERENCE = "pdoc>=16"  # a reference from docstrings, in one command

FLATBUFFERS = "flatbuffers>=25.2"  # JAX serializes programs with it

TENSORBOARD = "tensorboardX>=2.6.4"  # writes event files without TensorFlow

EXTRAS = {
  "test": [
    "equinox>=0.13",
    TENSORBOARD,
    REFERENCE,
    FLATBUFFERS,
    "hypothesis>=6.130",
    "pyright[nodejs]>=1.1.400",
    "pytest>=8.4",
    "pytest-xdist>=3.8",
    "ruff>=0.12",
    "safetensors>=0.5",
    "selenium>=4.30",  # drives the chromium that is installed, if there is one
    *NOTEBOOK,
  ],
  "datasets": ["datasets[vision]>=4"],  # of Hugging Face, saved to disk
  "export": [FLATBUFFERS, "onnx>=1.23"],
  # Loggers of --log, each imported when it is asked for.
  "tensorboard": [TENSORBOARD],
  "trackio": ["trackio>=0.40"],
  "wandb": ["wandb>=0.24"],
  "reference": [REFERENCE],
  "ray": ["ray>=2.50"],
  "slurm": ["submitit>=1.5.3"],
  "prepare": ["tensorflow>=2.20"],
  "notebook": [*NOTEBOOK, "jupyterlab>=4.4"],
  "develop": ["pre-commit>=4.7"],
}

setuptools.setup(
  name="minarch-jax",
  version=version(),
  description=(
    "Minimal architectures in JAX: convergence, pruning and quantization of "
    "populations of small networks"
  ),
  long_description=(HERE / "README.md").read_text(),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  license_files=["LICENSE"],
  python_requires=">=3.11",
  packages=setuptools.find_packages(include=["minarch_jax", "minarch_jax.*"]),
  package_data={
    "minarch_jax": ["py.typed"],
    "minarch_jax.report": ["*.html", "*.md", "*.css", "*.js", "*.conf"],
  },
  install_requires=REQUIRED,
  extras_require=EXTRAS,
)
