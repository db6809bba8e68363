"""Architectures: parse, print, count, enumerate; parents and width masks.

Everything here is exact integer arithmetic on shapes; no network is built and
JAX is not imported. One description carries the whole project: every parameter
leaf of a network has *named axes*, and an architecture gives each name a size.
Parameter counts, width masks, padding to a parent, coupled-unit pruning and
compaction are all read off that description.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import difflib
import itertools
import math
import re

Shape = tuple[int, int, int]  # (height, width, channels) of one image


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One parameter array: where it is and what its axes mean.

  `axes` names each axis; the last `outputs` of them are output axes, the ones
  before are summed over (the fan-in). `positions` is how often the leaf is
  applied per image, so a kernel costs size * positions MACs. `gain` is the
  variance gain of its initial values (2 before a ReLU, 1 otherwise, He et al.
  2015); 0 stands for a leaf that starts constant. `layer` is the number of the
  hidden layer or block the leaf belongs to (-1 = in networks of any depth): a
  member has the leaf if it is deeper than that.
  """

  path: tuple[str, ...]
  axes: tuple[str, ...]
  outputs: int = 1
  positions: int = 1
  gain: float = 0.0
  layer: int = -1

  @property
  def is_kernel(self) -> bool:
    return self.path[-1] == "kernel"


@dataclasses.dataclass(frozen=True)
class Spec:
  """All leaves of a network and the size of every named axis.

  `unit_axes` are the axes whose entries are units (neurons, channels, heads,
  MLP units): their sizes may differ between the members of a pack, and one
  entry can be removed from all leaves that carry the axis.
  `attention_macs` maps a (heads, head_dim) axis pair to the positions its
  score and value products are taken at.
  """

  leaves: tuple[Leaf, ...]
  sizes: Mapping[str, int]
  unit_axes: tuple[str, ...]
  attention_macs: Mapping[tuple[str, str], int]

  def shape(self, leaf: Leaf) -> tuple[int, ...]:
    return tuple(self.sizes[axis] for axis in leaf.axes)

  @property
  def num_params(self) -> int:
    return sum(math.prod(self.shape(leaf)) for leaf in self.leaves)

  @property
  def macs(self) -> int:
    products = sum(
      math.prod(self.shape(leaf)) * leaf.positions
      for leaf in self.leaves
      if leaf.is_kernel
    )
    attention = sum(
      self.sizes[heads] * self.sizes[dim] * positions
      for (heads, dim), positions in self.attention_macs.items()
    )
    return products + attention


@dataclasses.dataclass(frozen=True, order=True)
class Architecture:
  """A network shape: family, the widths of its units, and what is not a width.

  `widths` holds every size that may differ between members of a pack:
    dnn  hidden widths
    cnn  channels
    vit  dim, then (heads, head_dim, mlp) for each block
  `options` holds the rest (vit: patch size, pooling). Architectures of one
  *skeleton* can share a parent: those of one family and equal options, and for
  cnn of equal depth, because pooling ties the image size to the depth.

  `str(a)` round-trips through `Architecture.parse`.
  """

  family: str
  widths: tuple[int, ...]
  options: tuple[int | str, ...] = ()

  @classmethod
  def parse(cls, text: str) -> "Architecture":
    """Reads "dnn:30-30", "cnn:8", "cnn:8-16" or "vit:p7-d32-l2-h4".

    A ViT may also give, per block and joined by dots, its heads (h4.3), its
    MLP widths (m64.50; default 2 * dim) and its head sizes (k8.8; default
    dim / heads), and "-cls" for a class token instead of mean pooling.

    Raises:
      ValueError: the text is not an architecture; the message names the part.
    """
    family, colon, body = text.strip().partition(":")
    if not colon or family not in FAMILIES:
      near = difflib.get_close_matches(family, FAMILIES, 1)
      hint = f"; did you mean {near[0]!r}?" if near else ""
      raise ValueError(
        f"architecture {text!r}: expected FAMILY:SIZES with FAMILY one of "
        f"{', '.join(FAMILIES)} (for example dnn:30-30, cnn:8-16, "
        f"vit:p7-d32-l2-h4){hint}"
      )
    try:
      return FAMILIES[family].parse(body)
    except ValueError as error:
      raise ValueError(f"architecture {text!r}: {error}") from None

  def __str__(self) -> str:
    return f"{self.family}:{FAMILIES[self.family].format(self)}"

  @property
  def depth(self) -> int:
    """Hidden layers (dnn), convolutions (cnn) or blocks (vit)."""
    if self.family == "vit":
      return (len(self.widths) - 1) // 3
    return len(self.widths)

  @property
  def skeleton(self) -> tuple:
    depth = self.depth if self.family == "cnn" else 0
    return (self.family, depth, self.options)

  def extended(self, depth: int) -> "Architecture":
    """Adds the layers that a deeper parent runs and this network lacks.

    In a dnn they pass the last layer's outputs on, so they are as wide; in a
    vit they add nothing to the residual stream, so they are as small as can be.
    """
    missing = depth - self.depth
    more = {"dnn": self.widths[-1:], "cnn": (), "vit": (1, 1, 1)}[self.family]
    return dataclasses.replace(self, widths=self.widths + more * missing)

  def spec(self, input_shape: Shape, num_classes: int) -> Spec:
    """Describes every leaf of the network on images of (H, W, C).

    Raises:
      ValueError: the images are too small or not divisible by the patch.
    """
    return FAMILIES[self.family].spec(self, input_shape, num_classes)

  def num_params(self, input_shape: Shape, num_classes: int) -> int:
    """Counts the parameters exactly, without building the network."""
    return self.spec(input_shape, num_classes).num_params

  def macs(self, input_shape: Shape, num_classes: int) -> int:
    """Counts multiply-accumulates of one image's forward pass.

    Matrix products and convolutions count; biases, normalisation, activation
    and the softmax do not.
    """
    return self.spec(input_shape, num_classes).macs

  def sizes(
    self, input_shape: Shape, num_classes: int, depth: int | None = None
  ) -> dict[str, int]:
    """Gives the member's true size of each unit axis.

    Args:
      input_shape, num_classes: of the images.
      depth: of the parent, where members of several depths share it: the
        sizes then name all of its axes, and "depth" is the member's own.
    """
    spec = self.extended(depth or self.depth).spec(input_shape, num_classes)
    sizes = {axis: spec.sizes[axis] for axis in spec.unit_axes}
    return sizes | ({} if depth is None else {"depth": self.depth})


def parent(architectures: Iterable[Architecture]) -> Architecture:
  """Returns the smallest architecture that every given one is a part of.

  Raises:
    ValueError: the architectures do not share one skeleton.
  """
  members = list(architectures)
  if len({member.skeleton for member in members}) != 1:
    raise ValueError(
      "a parent needs architectures of one family and options, and for cnn of "
      "one depth; got " + ", ".join(map(str, members))
    )
  depth = max(member.depth for member in members)
  columns = zip(*(m.extended(depth).widths for m in members), strict=True)
  widths = tuple(map(max, columns))
  return dataclasses.replace(members[0], widths=widths)


# --- dnn ---------------------------------------------------------------------


def _positive(text: str, what: str) -> int:
  if not re.fullmatch(r"[0-9]+", text) or int(text) < 1:
    raise ValueError(f"{what} {text!r} is not a positive integer")
  return int(text)


def _parse_chain(family: str, what: str) -> Callable[[str], Architecture]:
  def parse(body: str) -> Architecture:
    return Architecture(
      family, tuple(_positive(part, what) for part in body.split("-"))
    )

  return parse


def _format_chain(architecture: Architecture) -> str:
  return "-".join(map(str, architecture.widths))


def _dense(path, inputs, outputs, *, positions=1, gain=1.0, layer=-1):
  """The two leaves of a dense layer; `inputs` and `outputs` are axis names."""
  count = len(outputs)
  kernel, bias = (*path, "kernel"), (*path, "bias")
  return [
    Leaf(kernel, inputs + outputs, count, positions, gain, layer),
    Leaf(bias, outputs, count, positions, layer=layer),
  ]


def _dnn_spec(a: Architecture, input_shape: Shape, num_classes: int) -> Spec:
  sizes = {"inputs": math.prod(input_shape), "classes": num_classes}
  leaves, previous = [], "inputs"
  for i, width in enumerate(a.widths):
    axis = f"hidden_{i}"
    sizes[axis] = width
    leaves += _dense((axis,), (previous,), (axis,), gain=2.0, layer=i)
    previous = axis
  leaves += _dense(("output",), (previous,), ("classes",))
  units = tuple(f"hidden_{i}" for i in range(a.depth))
  return Spec(tuple(leaves), sizes, units, {})


# --- cnn ---------------------------------------------------------------------


def cnn_sizes(depth: int, input_shape: Shape) -> list[tuple[int, int]]:
  """Output (height, width) of each 3x3 convolution, before pooling.

  One convolution is taken without padding; several are padded to keep the
  size, with 2x2 max-pooling (floor) between them.
  """
  height, width, _ = input_shape
  if depth == 1:
    sizes = [(height - 2, width - 2)]
  else:
    sizes = [(height >> i, width >> i) for i in range(depth)]
  if min(min(size) for size in sizes) < 1:
    raise ValueError(
      f"{depth} convolutions with pooling do not fit images of "
      f"{height}x{width}; use fewer channels in the list"
    )
  return sizes


def _cnn_spec(a: Architecture, input_shape: Shape, num_classes: int) -> Spec:
  outputs = cnn_sizes(a.depth, input_shape)
  sizes = {
    "kernel_height": 3,
    "kernel_width": 3,
    "image_channels": input_shape[2],
    "pixels": math.prod(outputs[-1]),
    "classes": num_classes,
  }
  leaves, previous = [], "image_channels"
  for i, (channels, output) in enumerate(zip(a.widths, outputs, strict=True)):
    axis = f"channels_{i}"
    sizes[axis] = channels
    leaves += _dense(
      (f"conv_{i}",),
      ("kernel_height", "kernel_width", previous),
      (axis,),
      positions=math.prod(output),
      gain=2.0,
    )
    previous = axis
  leaves += _dense(("output",), ("pixels", previous), ("classes",))
  units = tuple(f"channels_{i}" for i in range(a.depth))
  return Spec(tuple(leaves), sizes, units, {})


# --- vit ---------------------------------------------------------------------

MLP_RATIO = 2


def _parse_vit(body: str) -> Architecture:
  fields, pool = {}, "mean"
  for part in body.split("-"):
    if part == "cls":
      pool = "cls"
      continue
    key, values = part[:1], part[1:]
    if key not in "pdlhmk" or not key or key in fields:
      raise ValueError(
        f"part {part!r} is not one of pPATCH, dDIM, lDEPTH, hHEADS, mMLP, "
        "kHEAD_DIM, cls, each at most once"
      )
    fields[key] = tuple(
      _positive(value, f"part {part!r}: {value!r}")
      for value in values.split(".")
    )
  missing = [f"{key}..." for key in "pdlh" if key not in fields]
  if missing:
    raise ValueError(
      f"{', '.join(missing)} missing; write for example vit:p7-d32-l2-h4"
    )
  for key in "pdl":
    if len(fields[key]) != 1:
      raise ValueError(f"{key} takes one number")
  (patch,), (dim,), (depth,) = fields["p"], fields["d"], fields["l"]

  def per_block(key, values):
    if len(values) == 1:
      return values * depth
    if len(values) != depth:
      raise ValueError(f"{key} has {len(values)} values for {depth} blocks")
    return values

  heads = per_block("h", fields["h"])
  mlp = per_block("m", fields.get("m", (MLP_RATIO * dim,)))
  if "k" not in fields and any(dim % h for h in heads):
    raise ValueError(
      f"dim {dim} is not divisible by heads {fields['h']}; change one of "
      "them or give the head size with k"
    )
  head_dims = per_block("k", fields["k"]) if "k" in fields else None
  widths = [dim]
  for i in range(depth):
    widths += [heads[i], head_dims[i] if head_dims else dim // heads[i], mlp[i]]
  return Architecture("vit", tuple(widths), (patch, pool))


def _format_vit(a: Architecture) -> str:
  dim, heads, head_dims, mlp = vit_widths(a)

  def joined(values):
    return ".".join(map(str, values[:1] if len(set(values)) == 1 else values))

  parts = [f"p{a.options[0]}", f"d{dim}", f"l{a.depth}", f"h{joined(heads)}"]
  if any(k * h != dim for k, h in zip(head_dims, heads, strict=True)):
    parts.append(f"k{joined(head_dims)}")
  if any(m != MLP_RATIO * dim for m in mlp):
    parts.append(f"m{joined(mlp)}")
  return "-".join(parts + (["cls"] if a.options[1] == "cls" else []))


def vit_widths(
  a: Architecture,
) -> tuple[int, tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
  """Splits ViT widths into dim and per-block heads, head sizes, MLP widths."""
  return a.widths[0], a.widths[1::3], a.widths[2::3], a.widths[3::3]


def _vit_spec(a: Architecture, input_shape: Shape, num_classes: int) -> Spec:
  height, width, channels = input_shape
  patch, pool = int(a.options[0]), a.options[1]
  if height % patch or width % patch:
    raise ValueError(
      f"{a}: patch {patch} does not divide images of {height}x{width}; "
      f"patches that do: {', '.join(map(str, patch_sizes(input_shape)))}"
    )
  dim, heads, head_dims, mlp = vit_widths(a)
  patches = (height // patch) * (width // patch)
  tokens = patches + (pool == "cls")
  sizes = {
    "patch_inputs": patch * patch * channels,
    "tokens": tokens,
    "classes": num_classes,
    "dim": dim,
  }
  units, attention = ["dim"], {}
  leaves = _dense(("embed",), ("patch_inputs",), ("dim",), positions=patches)
  leaves.append(Leaf(("position", "embedding"), ("tokens", "dim")))
  if pool == "cls":
    leaves.append(Leaf(("class_token", "embedding"), ("dim",)))

  def norm(path, layer=-1):
    names = ("scale", "bias")
    return [Leaf((*path, name), ("dim",), layer=layer) for name in names]

  for i in range(a.depth):
    block = f"block_{i}"
    h, k, m = (f"{block}/{name}" for name in ("heads", "head_dim", "mlp"))
    sizes |= {h: heads[i], k: head_dims[i], m: mlp[i]}
    units += [h, k, m]
    attention[h, k] = 2 * tokens * tokens
    inside = {"positions": tokens, "layer": i}
    leaves += norm((block, "attention_norm"), i)
    for name in ("query", "key", "value"):
      path = (block, "attention", name)
      leaves += _dense(path, ("dim",), (h, k), **inside)
    path = (block, "attention", "out")
    leaves += _dense(path, (h, k), ("dim",), **inside)
    leaves += norm((block, "mlp_norm"), i)
    leaves += _dense((block, "mlp", "in"), ("dim",), (m,), **inside)
    leaves += _dense((block, "mlp", "out"), (m,), ("dim",), **inside)
  leaves += norm(("norm",))
  leaves += _dense(("output",), ("dim",), ("classes",))
  return Spec(tuple(leaves), sizes, tuple(units), attention)


@dataclasses.dataclass(frozen=True)
class Family:
  """What a family must say about itself: read, write and describe."""

  parse: Callable[[str], Architecture]
  format: Callable[[Architecture], str]
  spec: Callable[[Architecture, Shape, int], Spec]


FAMILIES: dict[str, Family] = {
  "dnn": Family(_parse_chain("dnn", "width"), _format_chain, _dnn_spec),
  "cnn": Family(_parse_chain("cnn", "channels"), _format_chain, _cnn_spec),
  "vit": Family(_parse_vit, _format_vit, _vit_spec),
}


# --- named grids -------------------------------------------------------------

PAPER_WIDTHS = (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 500, 1000)


def patch_sizes(input_shape: Shape) -> tuple[int, ...]:
  """The two smallest patches above one that cut an image into 2-8 per side.

  4 and 7 on 28x28, 4 and 8 on 32x32, 2 and 4 on 8x8.
  """
  height, width, _ = input_shape
  fitting = [
    p
    for p in range(2, min(height, width) + 1)
    if height % p == 0 == width % p
    and 2 <= height // p <= 8
    and 2 <= width // p <= 8
  ]
  return tuple(fitting[:2]) or (math.gcd(height, width),)


def _chains(family: str, texts: str) -> list[Architecture]:
  return [Architecture.parse(f"{family}:{text}") for text in texts.split()]


def _vits(input_shape, patches, shapes) -> list[Architecture]:
  return [
    Architecture.parse(f"vit:p{p}-d{d}-l{depth}-h{h}")
    for p in patches
    for d, depth, h in shapes
  ]


def _paper_dnn(input_shape: Shape) -> list[Architecture]:
  """1-4 hidden layers: equal, strictly increasing or strictly decreasing."""
  shapes = []
  for depth in range(1, 5):
    rising = list(itertools.combinations(PAPER_WIDTHS, depth))
    falling = [widths[::-1] for widths in rising] if depth > 1 else []
    equal = [(width,) * depth for width in PAPER_WIDTHS] if depth > 1 else []
    shapes += equal + rising + falling
  return [Architecture("dnn", widths) for widths in shapes]


def _paper_vit(input_shape: Shape) -> list[Architecture]:
  """Heads of four or more dimensions: 18 (dim, heads) pairs, depth 1-6."""
  shapes = [
    (dim, depth, heads)
    for dim in (4, 8, 16, 32, 64, 128)
    for depth in range(1, 7)
    for heads in (1, 2, 4, 8)
    if dim // heads >= 4
  ]
  return _vits(input_shape, patch_sizes(input_shape), shapes)


def _single_convolutions(input_shape: Shape) -> list[Architecture]:
  return [Architecture("cnn", (channels,)) for channels in range(1, 33)]


def _square_dnn(input_shape: Shape) -> list[Architecture]:
  return [
    Architecture("dnn", (width,) * depth)
    for depth in range(1, 5)
    for width in PAPER_WIDTHS
  ]


def _square_cnn(input_shape: Shape) -> list[Architecture]:
  return [
    Architecture("cnn", (channels,) * depth)
    for depth in (1, 2, 3)
    for channels in (1, 2, 4, 8, 16, 32)
  ]


def _square_vit(input_shape: Shape) -> list[Architecture]:
  shapes = [
    (dim, depth, max(1, dim // 8))
    for depth in (1, 2, 4)
    for dim in (4, 8, 16, 32, 64)
  ]
  return _vits(input_shape, patch_sizes(input_shape)[-1:], shapes)


def _small_dnn(input_shape: Shape) -> list[Architecture]:
  return _chains(
    "dnn",
    "1 3 10 30 100 1000 10-10 30-30 100-100 10-10-10-10 30-30-30-30 "
    "100-100-100-100",
  )


def _small_cnn(input_shape: Shape) -> list[Architecture]:
  return _chains(
    "cnn",
    "1 2 4 8 16 4-8 8-16 16-32 2-4-4 4-8-8 8-16-16 16-32-32",
  )


def _small_vit(input_shape: Shape) -> list[Architecture]:
  shapes = [(2, 1, 1), (4, 1, 1), (8, 1, 2), (12, 1, 2), (16, 1, 2)]
  shapes += [(32, 1, 4), (128, 1, 4)]
  shapes += [(4, 2, 1), (8, 2, 2), (12, 2, 2), (16, 2, 2), (32, 2, 4)]
  return _vits(input_shape, patch_sizes(input_shape)[-1:], shapes)


def _tiny_dnn(input_shape: Shape) -> list[Architecture]:
  return _chains("dnn", "2 16 8-4")


def _tiny_cnn(input_shape: Shape) -> list[Architecture]:
  return _chains("cnn", "1 4 2-3")


def _tiny_vit(input_shape: Shape) -> list[Architecture]:
  shapes = [(4, 1, 1), (8, 1, 2)]
  return _vits(input_shape, patch_sizes(input_shape)[-1:], shapes)


GRIDS: dict[str, dict[str, Callable[[Shape], list[Architecture]]]] = {
  "paper": {
    "dnn": _paper_dnn,
    "cnn": _single_convolutions,
    "vit": _paper_vit,
  },
  "square": {"dnn": _square_dnn, "cnn": _square_cnn, "vit": _square_vit},
  "small": {"dnn": _small_dnn, "cnn": _small_cnn, "vit": _small_vit},
  "tiny": {"dnn": _tiny_dnn, "cnn": _tiny_cnn, "vit": _tiny_vit},
}


def grid(
  name: str, family: str, input_shape: Shape, num_classes: int
) -> list[Architecture]:
  """Lists a named grid's architectures of one family that fit the images.

  Args:
    name: paper, square, small or tiny.
    family: dnn, cnn or vit.
    input_shape: (height, width, channels); decides ViT patches and which
      convolution stacks fit.
    num_classes: number of classes.

  Raises:
    ValueError: unknown name or family, with the nearest known one.
  """
  for what, value, known in (
    ("grid", name, GRIDS),
    ("family", family, FAMILIES),
  ):
    if value not in known:
      near = difflib.get_close_matches(value, known, 1)
      hint = f"; did you mean {near[0]!r}?" if near else ""
      raise ValueError(
        f"{what} {value!r} is not one of {', '.join(known)}{hint}"
      )

  def fits(architecture):
    try:
      architecture.spec(input_shape, num_classes)
    except ValueError:
      return False
    return True

  return [a for a in GRIDS[name][family](input_shape) if fits(a)]


def select(
  texts: Sequence[str],
  name: str,
  families: Sequence[str],
  input_shape: Shape,
  num_classes: int,
) -> list[Architecture]:
  """Returns the named architectures, or the grid's when none is named.

  Raises:
    ValueError: a text that does not parse or does not fit the images.
  """
  if texts:
    chosen = [Architecture.parse(text) for text in texts]
    for architecture in chosen:
      architecture.spec(input_shape, num_classes)
  else:
    chosen = [
      a for f in families for a in grid(name, f, input_shape, num_classes)
    ]
  return list(dict.fromkeys(chosen))
