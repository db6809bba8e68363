"""One file for one quantized (and pruned) model, exact and atomic.

The container is safetensors: eight bytes with the header's length, a JSON
header, then the tensors end to end. Leaves that are quantized or sparse are
tensors under "path/to/leaf:part"; all else is a plain F32 tensor.

  codes       U8: the raw codes, `bits` each, lowest bit first and without
              gaps, in row-major order; where there is a bitmap, of its ones
  bitmap      U8: one bit for each entry; 0 = the number is exactly 0
  scale       F32, zero_point I8: of the entries that share one

The header's metadata, all text, says how to read them:

  kind        that it is such a file
  note        free text
  quantized   JSON by leaf: format, shape, inputs and group (the layout), dtype
              of the original unless float32, whether there is a bitmap
  formats     JSON by format: its bits and the number of steps each raw code
              stands for: first + step * code, or a list of levels, or numpy's
              type
  sha256      of all else: the header without it, then the payload

A number is (steps - zero_point) * scale, in float32. README shows how to read
it with numpy alone.
"""

import hashlib
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minarch_jax import leaves, records, registries, types
from minarch_jax.quantization import (
  formats,
  layouts,
  packing,
  storage,
  tensors,
  trees,
)

_DTYPES = {
  **{"F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2")},
  **{"BF16": np.dtype(jnp.bfloat16), "BOOL": np.dtype(bool)},
  **{f"I{8 * n}": np.dtype(f"<i{n}") for n in (1, 2, 4, 8)},
  **{f"U{8 * n}": np.dtype(f"<u{n}") for n in (1, 2, 4, 8)},
}
_KIND = "minarch_jax.quantization.2"
_UNHASHED = "minarch_jax.quantization.1"  # as 0.1.0 wrote: no hash, no formats


def _encode(leaf: Any) -> tuple[dict[str, np.ndarray], Any]:
  """Turns a weight into byte arrays by part, and what describes them."""
  plain = not leaves.is_qtensor(leaf)
  if plain:
    if formats.as_trained(leaf) is None:
      return {"": np.asarray(leaf)}, None
    name = str(leaf.dtype)
    coding, values = tensors.Coding(name, layouts.Layout(()), name), leaf
  else:
    leaf = leaf.unpack()
    coding, values = leaf.layout, leaf.values
  format = formats.FORMATS[coding.format]
  codes = np.asarray(values).reshape(-1)
  kept = np.asarray(_nonzero(codes, leaf, format))
  bitmap = storage.uses_bitmap(
    codes.size, int(kept.sum()), format.bits, format.packs_zero
  )
  if plain and not bitmap:
    return {"": np.asarray(leaf)}, None
  parts = {}
  if bitmap:
    parts[":bitmap"] = packing.pack(kept, 1)
    codes = codes[kept]
  parts[":codes"] = packing.pack(format.to_raw(codes), format.bits)
  if format.scaled:
    parts[":scale"] = leaf.scale
  if not format.symmetric:
    parts[":zero_point"] = leaf.zero_point
  described = coding.describe() | {
    "shape": list(values.shape),
    "bitmap": bitmap,
    **({"plain": True} if plain else {}),
  }
  return {part: np.asarray(value) for part, value in parts.items()}, described


def describe_format(name: str) -> dict[str, Any]:
  """Says what the raw codes of a format stand for, without its code."""
  format = formats.FORMATS[name]
  if format.bits > 8:
    return {"bits": format.bits, "dtype": name}
  raw = jnp.arange(2**format.bits, dtype=jnp.uint8)
  levels = np.asarray(format.decode(format.from_raw(raw))).tolist()
  first, step = levels[0], levels[1] - levels[0]
  if levels == [first + step * code for code in range(len(levels))]:
    return {"bits": format.bits, "first": first, "step": step}
  return {"bits": format.bits, "levels": levels}


def _nonzero(codes: types.Array, leaf: Any, format: formats.Format) -> Any:
  """Marks the codes that stand for a number other than 0."""
  if format.symmetric:
    return format.decode(codes) != 0
  zeros = jnp.broadcast_to(_per_value(leaf), leaf.values.shape)
  return codes != zeros.reshape(-1)


def _per_value(leaf: types.QTensor) -> jax.Array:
  """The zero point of every value."""
  layout, shape = leaf.layout.blocks, leaf.values.shape
  blocks = layouts.to_blocks(leaf.values, layout).shape
  zeros = layouts.scale_to_blocks(leaf.zero_point, layout, shape)
  return layouts.from_blocks(jnp.broadcast_to(zeros, blocks), layout, shape)


def _decode(parts: dict[str, np.ndarray], described: dict[str, Any]) -> Any:
  """Inverts `_encode`."""
  name, shape = described["format"], tuple(described["shape"])
  format, size = formats.FORMATS[name], math.prod(shape)
  coding = tensors.read_coding(described)
  scale = jnp.asarray(parts[":scale"]) if format.scaled else None
  zero_point = None
  if not format.symmetric:
    zero_point = jnp.asarray(parts[":zero_point"])
  count, kept = size, None
  if described["bitmap"]:
    kept = np.asarray(packing.unpack(parts[":bitmap"], 1, size)) > 0
    count = int(kept.sum())
  raw = packing.unpack(parts[":codes"], format.bits, count)
  codes = np.asarray(format.from_raw(np.asarray(raw)))
  if kept is not None:
    zeros = np.full(size, format.encode(jnp.zeros(())))
    if zero_point is not None:
      empty = types.QTensor(zeros.reshape(shape), scale, zero_point, 0, coding)
      zeros = np.array(_per_value(empty)).reshape(-1)
    zeros[kept] = codes
    codes = zeros
  codes = jnp.asarray(codes.reshape(shape))
  if name == "float32" or described.get("plain"):
    return codes
  found = types.QTensor(codes, scale, zero_point, format.bits, coding)
  whole = jax.eval_shape(trees.dequantize, found).shape
  if whole != shape:
    raise ValueError(f"scales {getattr(scale, 'shape', ())} for {shape}")
  return found


def _collect(
  params: types.Params, choose: trees.Choose | None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Returns all arrays by key, and how the encoded leaves are to be read."""
  arrays, described, seen = {}, {}, set()
  choose = choose or leaves.weights(params).__contains__
  for path, leaf in leaves.named(params):
    name = "/".join(path)
    if ":" in name or name in seen:
      raise ValueError(
        f"{name!r}: a name with ':', or of two leaves, cannot be stored"
      )
    seen.add(name)
    if not leaves.is_qtensor(leaf) and not leaves.is_array(leaf):
      continue
    if not leaves.is_qtensor(leaf) and leaf.dtype not in _DTYPES.values():
      raise ValueError(
        f"{name}: cannot store {leaf.dtype}; convert it to float32 or "
        "quantize it"
      )
    if leaves.is_qtensor(leaf) or choose(path):
      parts, how = _encode(leaf)
    else:
      parts, how = {"": np.asarray(leaf)}, None
    if how:
      described[name] = how
    arrays |= {name + part: value for part, value in parts.items()}
  return arrays, described


def _header(
  arrays: dict[str, np.ndarray], order: list[str]
) -> dict[str, dict[str, Any]]:
  """Gives each tensor's type, shape and place in the payload."""
  codes = {dtype: code for code, dtype in _DTYPES.items()}
  header: dict[str, dict[str, Any]] = {}
  start = 0
  for key in order:
    array = arrays[key]
    header[key] = {
      "dtype": codes[array.dtype],
      "shape": list(array.shape),
      "data_offsets": [start, start + array.nbytes],
    }
    start += array.nbytes
  return header


def _digest(header: dict[str, Any], payload: bytes | memoryview) -> str:
  """Hashes a file, whoever wrote its header in whichever order."""
  text = json.dumps(header, sort_keys=True).encode()
  return hashlib.sha256(text + bytes(payload)).hexdigest()


def content(
  params: types.Params,
  note: str = "",
  choose: trees.Choose | None = None,
) -> tuple[bytes, bytes]:
  """Returns what `save_model` writes: the header with its length, the payload.

  Raises:
    ValueError: as `save_model`.
  """
  arrays, described = _collect(params, choose)
  # Wider types first, so that each tensor lies on a multiple of its type.
  order = sorted(arrays, key=lambda key: (-arrays[key].itemsize, key))
  used = sorted({how["format"] for how in described.values()})
  metadata = {
    "kind": _KIND,
    "note": note,
    "quantized": json.dumps(described, sort_keys=True),
    "formats": json.dumps({name: describe_format(name) for name in used}),
  }
  payload = b"".join(arrays[key].tobytes() for key in order)
  header = {"__metadata__": metadata, **_header(arrays, order)}
  metadata["sha256"] = _digest(header, payload)
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)
  return len(text).to_bytes(8, "little") + text, payload


def save_model(
  path: str,
  params: types.Params,
  *,
  note: str = "",
  choose: trees.Choose | None = None,
) -> int:
  """Writes one model to one file, which appears whole or not at all.

  >>> quantized = ma.quantize(params, 4)
  >>> ma.save_model("model.safetensors", quantized, note="dnn:6")
  129
  >>> back = ma.load_model("model.safetensors")
  >>> jax.tree.structure(back) == jax.tree.structure(quantized)
  True

  Args:
    path: the file, by custom "*.safetensors".
    params: any tree with QTensors and arrays of numbers, of ONE network; other
      leaves (functions, PRNG keys, Python numbers) are left out.
    note: free text for the header, for example the architecture.
    choose: which float leaves are weights, stored sparse where that is
      smaller.

  Returns:
    Bytes of payload: `storage_bytes` of the same model. The file is larger by
    its header; `ma.export` counts that too.

  Raises:
    ValueError: numbers of a type that no such file holds, or a name with ":"
      or two leaves of one name.
  """
  header, payload = content(params, note, choose)
  with records.atomic(path) as temporary, open(temporary, "wb") as file:
    file.write(header + payload)
  return len(payload)


def _read(path: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Returns the header's metadata and every tensor of a file."""
  with open(path, "rb") as file:
    data = file.read()
  try:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    metadata = header["__metadata__"]
    if metadata["kind"] not in (_KIND, _UNHASHED):
      raise ValueError(f"kind {metadata['kind']!r}")
    payload = memoryview(data)[8 + length :]
    if metadata["kind"] == _KIND:
      if metadata.pop("sha256") != _digest(header, payload):
        raise ValueError("its hash is another")
    del header["__metadata__"]
    arrays = _arrays(header, payload)
  except Exception as error:  # whatever such bytes lead to
    raise _broken(path, error) from None
  return metadata, arrays


def _arrays(header: dict[str, Any], payload: memoryview) -> dict[str, Any]:
  """Reads tensors that fill a payload from end to end, as views of it."""
  arrays, end = {}, 0
  places = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
  for key, entry in places:
    (start, stop), shape = entry["data_offsets"], entry["shape"]
    dtype = _DTYPES[entry["dtype"]]
    if start != end or min(shape, default=0) < 0:
      raise ValueError(f"{key} is {shape} and lies at {start} instead of {end}")
    if stop - start != math.prod(shape) * dtype.itemsize:
      raise ValueError(f"{key} is {shape} in {stop - start} bytes")
    arrays[key] = np.frombuffer(payload[start:stop], dtype).reshape(shape)
    end = stop
  if end != len(payload):
    raise ValueError(f"{len(payload)} bytes of payload instead of {end}")
  return arrays


def _broken(path: str, error: Exception) -> ValueError:
  return ValueError(
    f"{path} is not a whole model file of this library "
    f"({error or type(error).__name__}); write it with ma.save_model or "
    "ma.export"
  )


def _check_formats(path: str, stored: dict[str, Any]) -> None:
  """Raises ValueError for a format that is unknown or another one here."""
  for name, how in stored.items():
    if name not in formats.FORMATS:
      raise ValueError(
        f"{path} holds the format {name!r}, which is not known here; register "
        f"it in registries.FORMATS{registries.nearest(name, formats.FORMATS)}"
      )
    # As text, in which a level that is no number equals itself.
    if json.dumps(how) != json.dumps(describe_format(name)):
      raise ValueError(
        f"{path} holds a format {name!r} of other levels than the one "
        "registered here; register that one in registries.FORMATS"
      )


def load_model(path: str, like: types.Params = None) -> types.Params:
  """Reads what `save_model` wrote: the same numbers, bit for bit.

  >>> ma.save_model("dense.safetensors", params)
  492
  >>> back = ma.load_model("dense.safetensors")
  >>> model.apply(back, x).shape
  (9, 3)

  Codes come back unpacked.

  Args:
    path: the file.
    like: a tree with the leaves of the one that was saved, quantized or not,
      whose structure the result has: lists, dataclasses, `nnx.State`. What a
      file does not hold, as functions, is taken from it. None = nested
      dictionaries by the names of leaves.

  Raises:
    ValueError: not such a file, a damaged one, or one with a format that is
      unknown or another one here; `like` has other leaves.
  """
  metadata, arrays = _read(path)
  try:
    described = dict(json.loads(metadata["quantized"]))
    stored = dict(json.loads(metadata.get("formats", "{}")))
  except Exception as error:
    raise _broken(path, error) from None
  _check_formats(path, stored)
  try:
    found = _decoded(arrays, described)
    nested = _nested(found)
  except Exception as error:  # what is said about the tensors is not true
    raise _broken(path, error) from None
  return nested if like is None else _filled(path, found, like)


def _decoded(
  arrays: dict[str, np.ndarray], described: dict[str, Any]
) -> dict[str, Any]:
  parts: dict[str, dict[str, np.ndarray]] = {}
  for key, array in arrays.items():
    name, colon, part = key.partition(":")
    parts.setdefault(name, {})[colon + part] = array
  if unknown := sorted(described.keys() - parts.keys()):
    raise ValueError(f"there is no {unknown[0]}")
  return {
    name: _decode(parts[name], described[name])
    if name in described
    else jnp.asarray(parts[name][""])
    for name in sorted(parts)
  }


def _nested(found: dict[str, Any]) -> dict[str, Any]:
  tree: dict[str, Any] = {}
  for name, leaf in found.items():
    *above, last = name.split("/")
    branch = tree
    for step in above:
      branch = branch.setdefault(step, {})
    if last in branch:
      raise ValueError(f"{name} is a leaf and a branch")
    branch[last] = leaf
  return tree


def _filled(path: str, found: dict[str, Any], like: types.Params) -> Any:
  """Puts leaves by their names into a tree that has them."""
  pairs = trees.leaves_with_names(like)
  wanted = {
    name: tuple(leaf.shape)
    for name, leaf in pairs
    if leaves.is_qtensor(leaf) or leaves.is_array(leaf)
  }
  shapes = {name: tuple(leaf.shape) for name, leaf in found.items()}
  differ = sorted(
    name
    for name in {**wanted, **shapes}
    if wanted.get(name) != shapes.get(name)
  )
  if differ:
    raise ValueError(
      f"{path} holds other leaves than like=: "
      + "; ".join(
        f"{name} is {shapes.get(name, 'missing')} there, "
        f"{wanted.get(name, 'missing')} here"
        for name in differ[:4]
      )
    )
  return trees.replace_leaves(like, found)
