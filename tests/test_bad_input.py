"""Whatever is typed or lies in a file is used as it says, or refused at once.

Generated inputs: never another error than the one that users are shown, and
never silent acceptance of what does not say what it seems to.
"""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

hypothesis = pytest.importorskip("hypothesis")
from absl import flags as absl_flags  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

import minarch_jax as ma  # noqa: E402
from minarch_jax import checksums, quantization, records  # noqa: E402
from minarch_jax.config import Config, ConfigError  # noqa: E402
from minarch_jax.quantization.networks import files  # noqa: E402
from tests.test_records import rows  # noqa: E402


def often(count):
  return settings(
    max_examples=count,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
  )


# --- architectures -----------------------------------------------------------

# Near to what is right, where parsers err; and anything.
PIECES = [
  "dnn",
  "cnn",
  "vit",
  ":",
  "-",
  "p7",
  "d32",
  "l2",
  "h4",
  "0",
  "1",
  "30",
]
PIECES += ["-1", "1e3", " ", "٣", "007", "9" * 30, "x", "", "\n", "d", "²"]
NEARLY = st.lists(st.sampled_from(PIECES), max_size=9).map("".join)


@often(1200)
@given(NEARLY | st.text(max_size=12))
def test_an_architecture_is_read_as_it_is_written_or_refused(text):
  try:
    found = ma.Architecture.parse(text)
  except ValueError as error:
    assert repr(text) in str(error) or text in str(error)
    return
  assert ma.Architecture.parse(str(found)) == found
  assert str(found) == text


# --- flags -------------------------------------------------------------------

FIELDS = {field.name: field for field in dataclasses.fields(Config)}
TYPED = NEARLY | st.sampled_from(
  ["nan", "inf", "-1", "1e999", "0", "2.5", "True", "32,8", ",", "1,1", "0x10"]
)


@pytest.fixture(scope="module")
def values():
  """The flags of a study, apart from those of the process."""
  found = absl_flags.FlagValues()
  for field in FIELDS.values():
    default = field.default
    for kind, define in DEFINES.items():
      if isinstance(default, kind):
        text = [str(item) for item in default] if kind is tuple else default
        define(field.name, text, "", flag_values=found)
        break
  found(["study"])
  return found


DEFINES = {  # bools are integers too
  bool: absl_flags.DEFINE_boolean,
  int: absl_flags.DEFINE_integer,
  float: absl_flags.DEFINE_float,
  tuple: absl_flags.DEFINE_list,
  str: absl_flags.DEFINE_string,
}


@often(900)
@given(st.sampled_from(sorted(FIELDS)), TYPED)
def test_a_flag_is_used_as_it_is_typed_or_refused(values, name, text):
  from minarch_jax import flags

  field = FIELDS[name]
  try:
    values(["study", f"--{name}={text}"])
    value = values[name].value
    if isinstance(field.default, tuple):
      value = flags._parse_items(field, value)
    config = Config(**{name: value}).check()
  except (ConfigError, absl_flags.Error) as error:
    assert name in str(error)
  else:
    assert getattr(config, name) == value
    json.dumps(dataclasses.asdict(config), allow_nan=False)
  finally:
    values[name].unparse()


# --- files -------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A part and a model file, with their contents."""
  folder = tmp_path_factory.mktemp("whole")
  part = pathlib.Path(records.write(str(folder), "curves", "a", rows("curves")))
  model = folder / "model.safetensors"
  weights = {"out": {"kernel": np.eye(4, dtype=np.float32)}}
  files.save_model(str(model), quantization.quantize(weights, 4))
  return part, part.read_bytes(), model, model.read_bytes()


# Where, and which bytes take the place of how many.
CHANGE = st.tuples(st.floats(0, 1), st.binary(max_size=6), st.integers(0, 40))


def changed(content, change):
  share, new, length = change
  at = int(share * len(content))
  return content[:at] + new + content[at + length :]


@often(400)
@given(CHANGE)
def test_a_changed_part_is_refused(whole, change):
  part, content, *_ = whole
  other = changed(content, change)
  part.write_bytes(other)
  try:
    checksums.read(str(part), "curves/a", records.SCHEMA_VERSION)
  except ConfigError as error:
    assert str(part) in str(error)
  else:
    assert other == content


@often(400)
@given(CHANGE)
def test_a_changed_model_file_is_refused(whole, change):
  *_, model, content = whole
  other = changed(content, change)
  model.write_bytes(other)
  try:
    ma.load_model(str(model))
  except ValueError as error:
    assert str(model) in str(error)
  else:  # spaces in a JSON header mean nothing
    assert other.replace(b" ", b"") == content.replace(b" ", b"")


LIES = st.recursive(
  st.none() | st.integers(-9, 2**70) | st.text(max_size=3) | st.floats(),
  lambda inner: st.lists(inner, max_size=3),
  max_leaves=4,
)


@often(200)
@given(st.sampled_from(["shape", "inputs", "group", "bitmap", "format"]), LIES)
def test_a_model_file_that_lies_is_refused_or_whole(whole, name, value):
  """Its hash is right, whatever it says."""
  *_, model, content = whole
  length = int.from_bytes(content[:8], "little")
  header, payload = json.loads(content[8 : 8 + length]), content[8 + length :]
  how = json.loads(header["__metadata__"]["quantized"])
  how["out/kernel"][name] = value
  header["__metadata__"]["quantized"] = json.dumps(how)
  del header["__metadata__"]["sha256"]
  header["__metadata__"]["sha256"] = files._digest(header, payload)
  text = json.dumps(header).encode()
  model.write_bytes(len(text).to_bytes(8, "little") + text + payload)
  try:
    found = ma.load_model(str(model))
  except ValueError as error:
    assert str(model) in str(error)
  else:
    kernel = quantization.dequantize(found)["out"]["kernel"]
    assert kernel.shape == (4, 4)
