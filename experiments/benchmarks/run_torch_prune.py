"""PyTorch's pruning of one random matrix; a job on standard input."""

import importlib
import json
import sys
import time
from typing import Any

torch: Any = importlib.import_module("torch")
prune: Any = importlib.import_module("torch.nn.utils.prune")


def main() -> None:
  job = json.load(sys.stdin)
  torch.set_num_threads(job["threads"])
  torch.manual_seed(0)
  seconds, kept = [], 0.0
  for _ in range(1 + job["calls"]):
    layer = torch.nn.Linear(*job["shape"], bias=False)
    start = time.perf_counter()
    prune.global_unstructured(
      [(layer, "weight")], prune.L1Unstructured, amount=job["sparsity"]
    )
    seconds.append(time.perf_counter() - start)
    kept = float(layer.weight_mask.mean())
  found = {"first": seconds[0], "seconds": min(seconds[1:]), "kept": kept}
  print(json.dumps(found))


if __name__ == "__main__":
  main()
