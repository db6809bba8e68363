"""Vision transformers: vit:p7-d32-l2-h4 has patches of 7x7, 32 dimensions,
2 blocks and 4 heads.

Its widths are dim, then (heads, head_dim, mlp) for each block; its options are
the patch size and the pooling.
"""

from collections.abc import Iterator, Sequence
import itertools
import math

from minarch_jax.architectures import families, ladder, specs
from minarch_jax.architectures.families import Body, Options, Shapes, Widths
from minarch_jax.architectures.specs import Leaf, Problem, Shape, Spec

MLP_RATIO = 2


def split(
  widths: Widths,
) -> tuple[int, tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
  """Splits widths into dim and per-block heads, head sizes, MLP widths."""
  return widths[0], widths[1::3], widths[2::3], widths[3::3]


def _depth(widths: Widths) -> int:
  return (len(widths) - 1) // 3


def _deepen(widths: Widths, missing: int) -> Widths:
  """Added blocks add nothing to the residual stream: as small as can be."""
  del widths
  return (1, 1, 1) * missing


def _parse(body: str) -> Body:
  """Reads pPATCH-dDIM-lDEPTH-hHEADS, and per block, joined by dots, heads,
  MLP widths (m64.50; default 2 * dim) and head sizes (k8.8; default dim /
  heads); "-cls" stands for a class token instead of mean pooling."""
  fields, pool = _fields(body)
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
  return tuple(widths), (patch, pool)


def _fields(body: str) -> tuple[dict[str, tuple[int, ...]], str]:
  """Reads the numbers after each letter, and the pooling."""
  fields: dict[str, tuple[int, ...]] = {}
  pool = "mean"
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
      families.positive(value, f"part {part!r}: {value!r}")
      for value in values.split(".")
    )
  return fields, pool


def _format(widths: Widths, options: Options) -> str:
  dim, heads, head_dims, mlp = split(widths)

  def joined(values):
    return ".".join(map(str, values[:1] if len(set(values)) == 1 else values))

  parts = [f"p{options[0]}", f"d{dim}", f"l{len(mlp)}", f"h{joined(heads)}"]
  if any(k * h != dim for k, h in zip(head_dims, heads, strict=True)):
    parts.append(f"k{joined(head_dims)}")
  if any(m != MLP_RATIO * dim for m in mlp):
    parts.append(f"m{joined(mlp)}")
  return "-".join(parts + (["cls"] if options[1] == "cls" else []))


def _spec(widths: Widths, options: Options, problem: Problem) -> Spec:
  height, width, channels = problem.input_shape
  patch, pool = int(options[0]), options[1]
  if height % patch or width % patch:
    raise ValueError(
      f"vit:{_format(widths, options)}: patch {patch} does not divide images "
      f"of {height}x{width}; patches that do: "
      f"{', '.join(map(str, patch_sizes(problem.input_shape)))}"
    )
  dim, heads, head_dims, mlp = split(widths)
  patches = (height // patch) * (width // patch)
  tokens = patches + (pool == "cls")
  sizes = {
    "patch_inputs": patch * patch * channels,
    "tokens": tokens,
    "classes": problem.num_classes,
    "dim": dim,
  }
  units, fixed, attention = ["dim"], ["dim"], {}
  leaves = specs.dense(
    ("embed",), ("patch_inputs",), ("dim",), positions=patches
  )
  leaves.append(Leaf(("position", "embedding"), ("tokens", "dim")))
  if pool == "cls":
    leaves.append(Leaf(("class_token", "embedding"), ("dim",)))
  for i in range(len(mlp)):
    h, k, m = (f"block_{i}/{name}" for name in ("heads", "head_dim", "mlp"))
    sizes |= {h: heads[i], k: head_dims[i], m: mlp[i]}
    units += [h, k, m]
    fixed.append(k)
    attention[h, k] = 2 * tokens * tokens
    leaves += _block(i, (h, k, m), tokens)
  leaves += _norm(("norm",))
  leaves += specs.dense(("output",), ("dim",), ("classes",))
  return Spec(tuple(leaves), sizes, tuple(units), tuple(fixed), attention)


def _norm(path: tuple[str, ...], layer: int = -1) -> list[Leaf]:
  names = ("scale", "bias")
  return [Leaf((*path, name), ("dim",), layer=layer) for name in names]


def _block(i: int, axes: tuple[str, str, str], tokens: int) -> list[Leaf]:
  """The leaves of a block: attention, then two dense layers."""
  block, (h, k, m) = f"block_{i}", axes

  def dense(path, inputs, outputs, activated=False):
    return specs.dense(
      (block, *path),
      inputs,
      outputs,
      positions=tokens,
      layer=i,
      activated=activated,
    )

  leaves = _norm((block, "attention_norm"), i)
  for name in ("query", "key", "value"):
    leaves += dense(("attention", name), ("dim",), (h, k))
  leaves += dense(("attention", "out"), (h, k), ("dim",))
  leaves += _norm((block, "mlp_norm"), i)
  leaves += dense(("mlp", "in"), ("dim",), (m,), activated=True)
  return leaves + dense(("mlp", "out"), (m,), ("dim",))


def _problem(shapes: Shapes, widths: Widths, options: Options) -> Problem:
  del widths
  patch, pool = int(options[0]), options[1]
  tokens = shapes["position", "embedding"][-2] - (pool == "cls")
  height, width = families.sides(tokens)
  channels = shapes["embed", "kernel"][-2] // patch**2
  size = (height * patch, width * patch, channels)
  return Problem(size, shapes["output", "bias"][-1])


# --- grids -------------------------------------------------------------------


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


def _each(
  patches: Sequence[int], shapes: Sequence[tuple[int, int, int]]
) -> list[Body]:
  """Crosses patches with (dim, depth, heads)."""
  return [
    _parse(f"p{p}-d{d}-l{depth}-h{h}")
    for p in patches
    for d, depth, h in shapes
  ]


def _paper(problem: Problem) -> list[Body]:
  """Heads of four or more dimensions: 18 (dim, heads) pairs, depth 1-6."""
  shapes = [
    (dim, depth, heads)
    for dim in (4, 8, 16, 32, 64, 128)
    for depth in range(1, 7)
    for heads in (1, 2, 4, 8)
    if dim // heads >= 4
  ]
  return _each(patch_sizes(problem.input_shape), shapes)


def _square(problem: Problem) -> list[Body]:
  shapes = [
    (dim, depth, max(1, dim // 8))
    for depth in (1, 2, 4)
    for dim in (4, 8, 16, 32, 64)
  ]
  return _each(patch_sizes(problem.input_shape)[-1:], shapes)


def _small(problem: Problem) -> list[Body]:
  shapes = [(2, 1, 1), (4, 1, 1), (8, 1, 2), (12, 1, 2), (16, 1, 2)]
  shapes += [(32, 1, 4), (128, 1, 4)]
  shapes += [(4, 2, 1), (8, 2, 2), (12, 2, 2), (16, 2, 2), (32, 2, 4)]
  return _each(patch_sizes(problem.input_shape)[-1:], shapes)


def _tiny(problem: Problem) -> list[Body]:
  return _each(patch_sizes(problem.input_shape)[-1:], [(4, 1, 1), (8, 1, 2)])


TOKENS = 16  # fewer are too few to attend to


def _ladder(problem: Problem) -> list[Body]:
  return ladder.members(problem, (1, 2, 4), _sized, _spec)


def _sized(problem: Problem, depth: int, size: int) -> Iterator[Body]:
  """Bodies near a size: a dim and heads, and an MLP that fills up the rest.

  MLPs nearest to twice the dim first; heads of four or more dimensions, two
  heads or more from eight dimensions on.
  """
  height, width, _ = problem.input_shape
  fitting = [
    p
    for p in range(1, min(height, width) + 1)
    if height % p == 0 == width % p and (height // p) * (width // p) >= TOKENS
  ]
  options = (fitting[-1] if fitting else 1, "mean")
  found = []
  for dim in itertools.count(1):
    heads = max(
      h for h in (1, 2, 4) if h == 1 or (dim % h == 0 and dim >= 4 * h)
    )

    def body(mlp, dim=dim, heads=heads):
      return (dim, *(heads, dim // heads, mlp) * depth), options

    one, two = (_spec(*body(mlp), problem).num_params for mlp in (1, 2))
    mlp = round(1 + (size - one) / (two - one))
    if mlp < 1:
      break
    if dim % heads == 0 and (dim < 8 or heads > 1):
      found.append((abs(math.log(mlp / (MLP_RATIO * dim))), body(mlp)))
  return iter([each for _, each in sorted(found)])


FAMILY = families.Family(
  parse=_parse,
  format=_format,
  spec=_spec,
  problem=_problem,
  grids={
    "ladder": _ladder,
    "paper": _paper,
    "monotone": _paper,
    "square": _square,
    "small": _small,
    "tiny": _tiny,
  },
  module="minarch_jax.models.vit:ViT",
  compact="minarch_jax.pruning.compaction:transformer",
  costs=families.Costs(
    compile_seconds=5.0,
    step_seconds=100e-6,
    flops=450e9,
    state_bytes_per_second=7e9,
    layer_bytes_per_second=0.85e9,
    probe=families.Probe("p2-d16-l1-h2", 1.25, 1.42e-3),
  ),
  layouts={
    "cpu": families.Layout("map", "map"),
    "other": families.Layout("vmap", "vmap"),
  },
  level=1,
  depth=_depth,
  deepen=_deepen,
)
