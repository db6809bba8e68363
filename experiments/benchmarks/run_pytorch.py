"""Trains a job's networks with PyTorch; `sweep_vs_pytorch` starts it.

The script a competent researcher would write: the data in memory as tensors,
no DataLoader, one network after another (`eager`), the same with every
architecture compiled once (`compile`), or all seeds of an architecture stacked
by torch.func (`vmap`). Needs torch and numpy only, and a C++ compiler for
`compile`. Reads a job (see `measure`) from standard input and prints one line
of JSON.
"""

# pyright: reportMissingImports=false

import time

START = time.perf_counter()

import json  # noqa: E402
import math  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.func import functional_call, stack_module_state  # noqa: E402
import torch.nn.functional as F  # noqa: E402

EVAL_BATCH = 1024


# --- the same networks -------------------------------------------------------


def make_dnn(widths, image, num_classes):
  layers, features = [nn.Flatten()], math.prod(image)
  for width in widths:
    layers += [nn.Linear(features, width), nn.ReLU()]
    features = width
  return nn.Sequential(*layers, nn.Linear(features, num_classes))


def make_cnn(widths, image, num_classes):
  height, width, channels = image
  layers = []
  for i, out in enumerate(widths):
    if i:
      layers.append(nn.MaxPool2d(2))
      height, width = height // 2, width // 2
    padding = 0 if len(widths) == 1 else 1
    layers += [nn.Conv2d(channels, out, 3, padding=padding), nn.ReLU()]
    channels = out
  if len(widths) == 1:
    height, width = height - 2, width - 2
  return nn.Sequential(
    *layers, nn.Flatten(), nn.Linear(height * width * channels, num_classes)
  )


class Block(nn.Module):
  """A pre-norm transformer block with one product for query, key, value."""

  def __init__(self, dim, heads, head_dim, mlp):
    super().__init__()
    self.heads, self.head_dim = heads, head_dim
    self.attention_norm = nn.LayerNorm(dim, eps=1e-6)
    self.qkv = nn.Linear(dim, 3 * heads * head_dim)
    self.out = nn.Linear(heads * head_dim, dim)
    self.mlp_norm = nn.LayerNorm(dim, eps=1e-6)
    self.mlp_in, self.mlp_out = nn.Linear(dim, mlp), nn.Linear(mlp, dim)

  def forward(self, x):
    batch, tokens, _ = x.shape
    qkv = self.qkv(self.attention_norm(x))
    qkv = qkv.view(batch, tokens, 3, self.heads, self.head_dim)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(q, k, v)
    x = x + self.out(y.transpose(1, 2).reshape(batch, tokens, -1))
    y = F.gelu(self.mlp_in(self.mlp_norm(x)), approximate="tanh")
    return x + self.mlp_out(y)


class ViT(nn.Module):
  """Patches, learned positions, blocks, norm, mean over tokens, logits."""

  def __init__(self, widths, patch, image, num_classes):
    super().__init__()
    height, width, channels = image
    dim = widths[0]
    self.patch = patch
    self.embed = nn.Linear(patch * patch * channels, dim)
    tokens = (height // patch) * (width // patch)
    self.position = nn.Parameter(0.02 * torch.randn(tokens, dim))
    shapes = zip(widths[1::3], widths[2::3], widths[3::3], strict=True)
    self.blocks = nn.Sequential(*(Block(dim, *shape) for shape in shapes))
    self.norm = nn.LayerNorm(dim, eps=1e-6)
    self.output = nn.Linear(dim, num_classes)

  def forward(self, x):
    batch, channels, height, width = x.shape
    p = self.patch
    x = x.view(batch, channels, height // p, p, width // p, p)
    x = x.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, p * p * channels)
    x = self.blocks(self.embed(x) + self.position)
    return self.output(self.norm(x).mean(dim=1))


def make(architecture, image, num_classes):
  """Builds a network from {family, widths, options}."""
  widths = architecture["widths"]
  if architecture["family"] == "vit":
    return ViT(widths, architecture["options"][0], image, num_classes)
  build = make_dnn if architecture["family"] == "dnn" else make_cnn
  return build(widths, image, num_classes)


def load_values(model, architecture, arrays):
  """Copies the other engine's values, by layer, into a network."""

  def put(layer, name, inputs=1, fold=None):
    kernel = torch.from_numpy(arrays[f"{name}/kernel"])
    if fold:  # [pixels, channels, classes], but NCHW flattens channels first
      kernel = kernel.transpose(0, 1)
    size = math.prod(kernel.shape[:inputs])
    layer.weight.copy_(kernel.reshape(size, -1).T)
    layer.bias.copy_(torch.from_numpy(arrays[f"{name}/bias"]).reshape(-1))

  def norm(layer, name):
    layer.weight.copy_(torch.from_numpy(arrays[f"{name}/scale"]))
    layer.bias.copy_(torch.from_numpy(arrays[f"{name}/bias"]))

  with torch.no_grad():
    if architecture["family"] == "dnn":
      layers = [layer for layer in model if isinstance(layer, nn.Linear)]
      for i, layer in enumerate(layers[:-1]):
        put(layer, f"hidden_{i}")
      put(layers[-1], "output")
    elif architecture["family"] == "cnn":
      layers = [layer for layer in model if isinstance(layer, nn.Conv2d)]
      for i, layer in enumerate(layers):
        kernel = torch.from_numpy(arrays[f"conv_{i}/kernel"])
        layer.weight.copy_(kernel.permute(3, 2, 0, 1))
        layer.bias.copy_(torch.from_numpy(arrays[f"conv_{i}/bias"]))
      put(model[-1], "output", inputs=2, fold=True)
    else:
      put(model.embed, "embed")
      model.position.copy_(torch.from_numpy(arrays["position/embedding"]))
      for i, block in enumerate(model.blocks):
        name = f"block_{i}/attention"
        norm(block.attention_norm, f"block_{i}/attention_norm")
        norm(block.mlp_norm, f"block_{i}/mlp_norm")
        parts = [nn.Linear(1, 1) for _ in range(3)]
        for part, which in zip(parts, ("query", "key", "value"), strict=True):
          size = block.heads * block.head_dim
          part.weight = nn.Parameter(
            torch.empty(size, arrays[f"{name}/{which}/kernel"].shape[0])
          )
          part.bias = nn.Parameter(torch.empty(size))
          put(part, f"{name}/{which}")
        block.qkv.weight.copy_(torch.cat([part.weight for part in parts]))
        block.qkv.bias.copy_(torch.cat([part.bias for part in parts]))
        put(block.out, f"{name}/out", inputs=2)
        put(block.mlp_in, f"block_{i}/mlp/in")
        put(block.mlp_out, f"block_{i}/mlp/out")
      norm(model.norm, "norm")
      put(model.output, "output")


# --- data --------------------------------------------------------------------


def load(directory, share, batch_size):
  """Reads the splits, NCHW, the same share that the other contestants see."""

  def split(name):
    x = np.load(os.path.join(directory, f"{name}_x.npy"), mmap_mode="r")
    y = np.load(os.path.join(directory, f"{name}_y.npy"))
    count = math.ceil(len(y) * share)
    if name == "train":
      count = min(max(count, batch_size), len(y))
    x = torch.from_numpy(np.ascontiguousarray(x[:count].transpose(0, 3, 1, 2)))
    return x, torch.from_numpy(y[:count].astype(np.int64))

  return split("train"), split("validation"), split("test")


def minibatches(count, size):
  steps = count // size
  return torch.randperm(count)[: steps * size].view(steps, size)


def clocks():
  """Seconds of wall time, and of all processors together."""
  return np.array([time.perf_counter(), time.process_time()])


# --- the two loops -----------------------------------------------------------


def evaluate(forward, x, y):
  """Mean loss and accuracy on a split; forward may give stacked logits."""
  loss = hits = 0.0
  with torch.no_grad():
    for i in range(0, len(y), EVAL_BATCH):
      logits, labels = forward(x[i : i + EVAL_BATCH]), y[i : i + EVAL_BATCH]
      stacked = labels.expand(logits.shape[:-1])
      loss = loss + F.cross_entropy(
        logits.flatten(0, -2), stacked.flatten(), reduction="sum"
      )
      hits = hits + (logits.argmax(-1) == stacked).sum()
  return float(loss) / len(y), float(hits) / len(y)


def adam(params, learning_rate):
  # The fused form is the fastest of the three that PyTorch has on CPU.
  return torch.optim.Adam(params, learning_rate, fused=True)


def train_eager(model, job, splits, orders=None, forward=None):
  """Trains one network; returns its epochs' clocks and mean losses.

  `forward` is the compiled model. Validation runs uncompiled: its last batch
  is shorter, for which PyTorch would compile again.
  """
  (x, y), validation, _ = splits
  if forward is None:  # a module may have no truth value
    forward = model
  optimizer = adam(model.parameters(), job["learning_rate"])
  seconds, losses, accuracy = [], [], 0.0
  for _ in range(job["epochs"]):
    start = clocks()
    order = orders or minibatches(len(y), job["batch_size"])
    total = torch.zeros(())
    for indices in order:
      loss = F.cross_entropy(forward(x[indices]), y[indices])
      optimizer.zero_grad()
      loss.backward()
      optimizer.step()
      total += loss.detach()
    _, accuracy = evaluate(model, *validation)
    seconds.append(clocks() - start)
    losses.append(float(total) / len(order))
  return seconds, losses, accuracy


def train_compiled(models, job, splits):
  """Trains the seeds of an architecture in turn, by one compiled module."""
  (x, y), _, test = splits
  states = [
    {name: value.clone() for name, value in model.state_dict().items()}
    for model in models
  ]
  model = models[0]
  forward = torch.compile(model)
  size = job["batch_size"]
  F.cross_entropy(forward(x[:size]), y[:size]).backward()  # compiles both ways
  model.zero_grad()
  for state in states:
    model.load_state_dict(state)
    seconds, _, accuracy = train_eager(model, job, splits, forward=forward)
    evaluate(model, *test)
    yield seconds, accuracy


def train_vmap(models, job, splits):
  """Trains all seeds of an architecture stacked, each on its own minibatches.

  Adam is elementwise, so stacked parameters are optimized as they are, and
  the gradient of the summed losses is every network's own.
  """
  (x, y), validation, _ = splits
  params, _ = stack_module_state(models)
  skeleton = models[0].to("meta")

  def loss_fn(params, x, y):
    return F.cross_entropy(functional_call(skeleton, params, (x,)), y)

  losses_fn = torch.func.vmap(loss_fn, randomness="different")
  predict = torch.func.vmap(
    lambda params, x: functional_call(skeleton, params, (x,)),
    in_dims=(0, None),
  )
  optimizer = adam(list(params.values()), job["learning_rate"])
  seconds, losses, accuracy = [], [], 0.0
  for _ in range(job["epochs"]):
    start = clocks()
    orders = torch.stack(
      [minibatches(len(y), job["batch_size"]) for _ in models], dim=1
    )
    total = torch.zeros(len(models))
    for indices in orders:
      loss = losses_fn(params, x[indices], y[indices])
      optimizer.zero_grad()
      loss.sum().backward()
      optimizer.step()
      total += loss.detach()
    _, accuracy = evaluate(lambda part: predict(params, part), *validation)
    seconds.append(clocks() - start)
    losses.append(float(total.mean()) / len(orders))
  return seconds, losses, accuracy / len(models)


def train(job):
  """Trains every network of a job."""
  torch.set_num_threads(job["threads"])
  splits = load(job["data"], job["share"], job["batch_size"])
  (x, y), _, test = splits
  image = (*x.shape[2:], x.shape[1])
  num_classes = int(y.max()) + 1
  startup = time.perf_counter() - START
  epoch, accuracies = np.zeros(2), []
  for architecture in job["shapes"]:
    models = []
    for seed in job["seeds"]:
      torch.manual_seed(seed)
      models.append(make(architecture, image, num_classes))
    if job["method"] == "vmap":
      seconds, _, accuracy = train_vmap(models, job, splits)
      runs = [(seconds, accuracy)]
    elif job["method"] == "compile":
      runs = list(train_compiled(models, job, splits))
    else:
      runs = []
      for model in models:
        seconds, _, accuracy = train_eager(model, job, splits)
        evaluate(model, *test)
        runs.append((seconds, accuracy))
    epoch += sum(np.mean(seconds, axis=0) for seconds, _ in runs)
    accuracies += [accuracy for _, accuracy in runs]
  networks = len(job["shapes"]) * len(job["seeds"])
  return {
    "epochs": job["epochs"],
    "startup_seconds": startup,
    "epoch_seconds": epoch[0],
    "epoch_busy_seconds": epoch[1],
    "network_steps": networks * (len(y) // job["batch_size"]),
    "accuracy": float(np.mean(accuracies)),
  }


def check(job):
  """Repeats the other engine's few steps from its initial values."""
  torch.set_num_threads(job["threads"])
  splits = load(job["data"], job["share"], job["batch_size"])
  (x, y), _, _ = splits
  (architecture,) = job["shapes"]
  model = make(architecture, (*x.shape[2:], x.shape[1]), int(y.max()) + 1)
  with np.load(os.path.join(job["data"], "initial.npz")) as arrays:
    load_values(model, architecture, dict(arrays))
  order = torch.from_numpy(np.load(os.path.join(job["data"], "order.npy")))
  _, losses, _ = train_eager(model, job, splits, list(order.long()))
  return {"loss": losses[0], "steps": len(order)}


if __name__ == "__main__":
  request = json.load(sys.stdin)
  answer = check(request) if request.get("check") else train(request)
  print(json.dumps(answer))
