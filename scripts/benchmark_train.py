"""A training step against the same ViT in PyTorch: interleaved pairs, ratios with intervals.

  pip install -e ".[parity]"
  python -m scripts.benchmark_train                                   # S/16, 112 px, 16 images
  python -m scripts.benchmark_train --variant=mu/16 --batch_size=32 --pairs=10
  python -m scripts.benchmark_train --variant=B/16 --batch_size=512 --dtype=bfloat16   # on a GPU
  python -m scripts.benchmark_train --data=synthetic_faces   # from disk to update, that is

Every peer is a process of its own that holds one batch of uint8 images in memory and makes steps
when it is told to, while the others sleep. A pair is a few steps of ours and as many of the peer's,
in turns that change who is first; the ratio's interval is Student's 95 % over the logarithms of the
pairs' ratios. Images are scaled, the ViT (of transformers, attention by SDPA, the same tanh GELU)
goes forward and back, the mean of the patches feeds three linear heads (2 + 8 + 12 numbers), the
losses are CCC, cross-entropy and binary cross-entropy over masked labels, gradients are clipped,
AdamW moves all parameters. PyTorch runs eagerly and compiled, on a CPU with the number of threads
that it is fastest with. On a CPU, ours has what `affjax.host` asks of the C library: "kept" is
PyTorch with it, "not kept" ours without. `affjax augmented` is ours with the flagship's
augmentation.

With `--data` each reads a prepared data set's training split, shuffled: ours as training does, from
disk and (`affjax, resident`) from the device's memory, PyTorch's DataLoader files of the same JPEGs
with simplejpeg, by as many workers as it is fastest with. What a peer reads ahead while it sleeps
is a few batches: turns should be longer.

The last line is what a step takes of the host: a call as `affjax.train` makes it, of a program that
does nothing, against a bare `jax.jit` over the same arrays in one dict.
"""

import argparse
import dataclasses
import itertools
import json
import math
import os
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from affjax.data import packed, records
from scripts import peers, sweep

PEERS = ("torch eager", "torch eager, kept", "torch compile")
OURS = ("affjax", "affjax augmented", "affjax, not kept", "affjax, resident")
QUIET = dict(
  flip_rate=0.0, scale=0.0, shift=0.0, brightness=0.0, contrast=0.0, cast=0.0, grey_rate=0.0,
  erase_rate=0.0, erase_area=0.15,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Setting:
  """What every peer trains, and on what; no data: one batch of noise."""

  variant: str
  image_size: int
  batch_size: int
  dtype: str
  data: str
  data_dir: str | None


def batch_of(setting: Setting) -> dict[str, Any]:
  """A batch of noise, all of it labelled."""
  rng, size = np.random.default_rng(0), setting.batch_size
  labels = {
    "va": rng.uniform(-1, 1, (size, 2)),
    "expression": np.eye(8)[rng.integers(0, 8, size)],
    "au": rng.integers(0, 2, (size, 12)),
  }
  shape = (size, setting.image_size, setting.image_size, 3)
  return {
    "image": rng.integers(0, 256, shape, np.uint8),
    "labels": {task: x.astype(np.float32) for task, x in labels.items()},
    "mask": {
      "va": np.ones((size, 2), np.float32),
      "expression": np.ones(size, np.float32),
      "au": np.ones((size, 12), np.float32),
    },
    "index": np.arange(size, dtype=np.int32),
  }


def config_of(setting: Setting, augmented: bool = False) -> dict[str, Any]:
  """The flagship's config, cut down to what the peers do."""
  from configs import vit_mtl

  config = vit_mtl.get_config("plain=true")
  config.image_size = config.data.image_size = setting.image_size
  config.batch_size, config.dtype = setting.batch_size, setting.dtype
  encoder = dict(variant=setting.variant, stem="patch", layer_scale=0.0, drop_path_rate=0.0)
  config.model.encoder.update(encoder)
  config.procedure.update(weighting="equal", ema_decay=0.0)
  config.losses.expression.logit_adjustment = config.losses.au.positive_weight = None
  if not augmented:
    config.augment.update(QUIET)
  if setting.data:
    name, _, builder_config = setting.data.partition("/")
    config.data.update(name=name, config=builder_config, records="tfds")
    config.data.view.update(noise="clean", masks="none")
  return json.loads(config.to_json_best_effort())


def ours(
  setting: Setting, augmented: bool = False, keep: bool = True, placement: str = "stream"
) -> Callable[[int], float]:
  """Our step, as `affjax.main` makes it."""
  from affjax import host

  if keep:
    host.keep_memory()
  import jax

  from affjax import experiment, procedures, sharding, train

  config = config_of(setting, augmented)
  config["data"]["placement"] = placement
  mesh, rules = experiment.open_mesh(config)
  procedure = procedures.from_config(config)
  abstract = experiment.abstract_state(procedure, mesh, rules)
  held = None
  if setting.data:
    data = experiment.Data(config, setting.data_dir)
    held = experiment.hold(config, data, mesh, experiment.placement(config, data, mesh))
    batches = train.training_batches(config, data, mesh, 0, held)
  else:
    batches = itertools.repeat(sharding.global_batch(batch_of(setting), mesh))
  step = experiment.train_step(procedure, abstract, mesh, held)
  placed = jax.tree.map(lambda x: x.sharding, abstract)
  state = jax.jit(procedure.init, out_shardings=placed)()

  def run(steps: int) -> float:
    nonlocal state
    start = time.perf_counter()
    for _ in range(steps):
      state, metrics = step(state, next(batches))
    jax.block_until_ready((state, metrics))
    return (time.perf_counter() - start) / steps

  return run


def host_time(setting: Setting, rounds: int = 20, calls: int = 200) -> tuple[float, float]:
  """What a step takes of the host, without the device's work.

  Returns:
    Median microseconds of a call as `affjax.train` makes it and of a bare `jax.jit` over the same
    arrays in one dict, each of a program that gives back what it gets.
  """
  import jax

  from affjax import experiment, procedures, sharding

  config = config_of(setting)
  mesh, rules = experiment.open_mesh(config)
  abstract = experiment.abstract_state(procedures.from_config(config), mesh, rules)
  small = lambda tree: jax.tree.map(lambda x: np.zeros([1] * len(x.shape), x.dtype), tree)
  batch = jax.tree.map(lambda x: np.zeros((mesh.size, *x.shape[1:]), x.dtype), batch_of(setting))
  batch = sharding.global_batch(batch, mesh)
  idle = types.SimpleNamespace(train_step=lambda state, batch: (state, {}))
  ours, bare = (
    experiment.train_step(idle, abstract, mesh),
    jax.jit(idle.train_step, donate_argnums=0),
  )

  def run(step: Callable[..., Any], state: Any) -> float:
    state, _ = step(state, batch)
    start = time.perf_counter()
    for _ in range(calls):
      state, _ = step(state, batch)
    seconds = time.perf_counter() - start
    jax.block_until_ready(state)
    return 1e6 * seconds / calls

  def pair() -> tuple[float, float]:
    flat = {jax.tree_util.keystr(k): v for k, v in jax.tree.leaves_with_path(small(abstract))}
    placed = jax.tree.map(lambda x, y: jax.device_put(x, y.sharding), small(abstract), abstract)
    return run(ours, placed), run(bare, jax.device_put(flat))

  mine, least = np.median([pair() for _ in range(rounds)][1:], axis=0)
  return float(mine), float(least)


def torch_step(setting: Setting, compiled: bool, keep: bool = False) -> Callable[[int], float]:
  """The same in PyTorch, with as many threads and workers as it is fastest with."""
  from affjax import host

  if keep:
    host.keep_memory()
  import torch

  device = "cuda" if torch.cuda.is_available() else "cpu"
  net = torch_net(setting).to(device).train()
  optimizer = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.05, fused=True)
  loss = torch_loss(net, device, setting.dtype == "bfloat16")
  loss = torch.compile(loss) if compiled else loss
  batches = torch_batches(setting, device, 0)

  def run(steps: int) -> float:
    start = time.perf_counter()
    for _ in range(steps):
      optimizer.zero_grad(set_to_none=True)
      loss(next(batches)).backward()
      torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
      optimizer.step()
    if device == "cuda":
      torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps

  def best(values: Sequence[int], set_: Callable[[int], None]) -> None:
    seen = {}
    for value in values:
      set_(value)
      run(2)
      seen[value] = min(run(1) for _ in range(3))
    set_(min(seen, key=seen.get))

  def work(workers: int) -> None:
    nonlocal batches
    batches = torch_batches(setting, device, workers)

  cores = os.cpu_count() or 1
  if device == "cpu":
    best(range(1, cores + 1), torch.set_num_threads)
  if setting.data:
    best(sorted({0, 1, cores // 2, cores}), work)
  return run


def torch_net(setting: Setting) -> Any:
  """The ViT and the heads."""
  import torch
  import transformers

  from affjax.models import vit

  size, _, patch = setting.variant.partition("/")
  width, depth, heads = vit._SIZES[size]
  model = transformers.ViTModel(
    transformers.ViTConfig(
      hidden_size=width,
      num_hidden_layers=depth,
      num_attention_heads=heads,
      intermediate_size=4 * width,
      image_size=setting.image_size,
      patch_size=int(patch),
      hidden_act="gelu_pytorch_tanh",
      hidden_dropout_prob=0.0,
      attention_probs_dropout_prob=0.0,
      attn_implementation="sdpa",
    ),
    add_pooling_layer=False,
  )
  return torch.nn.ModuleDict({"vit": model, "heads": torch.nn.Linear(width, 22)})


def torch_loss(net: Any, device: str, half: bool) -> Callable[[Any], Any]:
  """Batch -> the sum of the three losses."""
  import torch

  def loss(batch: Any) -> torch.Tensor:
    labels, mask = batch["labels"], batch["mask"]
    with torch.autocast(device, torch.bfloat16, enabled=half):
      x = batch["image"].permute(0, 3, 1, 2).float() / 127.5 - 1
      hidden = net["vit"](pixel_values=x).last_hidden_state[:, 1:]
    va, expression, au = net["heads"](hidden.float().mean(1)).split([2, 8, 12], 1)
    weight = mask["va"] / mask["va"].sum(0)
    va = va.tanh()
    mean = lambda x: (weight * x).sum(0)
    dx, dy = va - mean(va), labels["va"] - mean(labels["va"])
    gap = mean(va) - mean(labels["va"])
    ccc = 2 * mean(dx * dy) / (mean(dx * dx) + mean(dy * dy) + gap**2)
    votes = -(labels["expression"] * expression.log_softmax(1)).sum(1)
    units = torch.nn.functional.binary_cross_entropy_with_logits(au, labels["au"], reduction="none")
    of = lambda x, m: (x * m).sum() / m.sum()
    return (1 - ccc).mean() + of(votes, mask["expression"]) + of(units, mask["au"])

  return loss


def torch_batches(setting: Setting, device: str, workers: int) -> Iterator[Any]:
  """Batches on the device, for ever."""
  import jax  # for its trees alone
  import torch
  from torch.utils import data

  placed = lambda batch: jax.tree.map(
    lambda x: torch.as_tensor(x).to(device, non_blocking=True), batch
  )
  if not setting.data:
    yield from itertools.repeat(placed(batch_of(setting)))
  more = dict(persistent_workers=True, prefetch_factor=4) if workers else {}
  loader = data.DataLoader(
    Labelled(setting), setting.batch_size, shuffle=True, drop_last=True, num_workers=workers,
    pin_memory=device == "cuda", **more,
  )  # fmt: skip
  while True:
    yield from map(placed, loader)


class Labelled:
  """The data set as PyTorch knows them: its JPEGs as files, and their labels."""

  def __init__(self, setting: Setting) -> None:
    wants = config_of(setting)["labels"]
    name, _, config = setting.data.partition("/")
    build = records.builder(name, config, setting.data_dir)
    split = records.records(build, "train", wants, setting.image_size)
    found = packed.shards(build, "train", "encoded", setting.image_size)
    self._folder = tempfile.TemporaryDirectory()
    self._paths = [Path(self._folder.name) / f"{i}.jpg" for i in range(len(found))]
    for path, image in zip(self._paths, found.read(range(len(found))), strict=True):
      path.write_bytes(image)
    self._rows = split.labelled({"image": None, "index": np.arange(len(found))})

  def __len__(self) -> int:
    return len(self._paths)

  def __getitem__(self, row: int) -> dict[str, Any]:
    import simplejpeg

    image = simplejpeg.decode_jpeg(self._paths[row].read_bytes(), colorspace="RGB")
    parts = {kind: {n: x[row] for n, x in self._rows[kind].items()} for kind in ("labels", "mask")}
    return {"image": image, **parts}


def serve(peer: str, setting: Setting) -> None:
  """Makes as many steps as it is told; seconds a step."""
  make = {
    "affjax": lambda: ours(setting),
    "affjax augmented": lambda: ours(setting, augmented=True),
    "affjax, not kept": lambda: ours(setting, keep=False),
    "affjax, resident": lambda: ours(setting, placement="device"),
    "torch eager": lambda: torch_step(setting, compiled=False),
    "torch eager, kept": lambda: torch_step(setting, compiled=False, keep=True),
    "torch compile": lambda: torch_step(setting, compiled=True),
  }
  run = make[peer]()
  run(2)
  peers.serve(lambda steps: run(int(steps)))


def main() -> None:
  """Runs the pairs and prints the table."""
  arguments = sys.argv[1:]
  options = parse(arguments)
  setting = Setting(**{f.name: getattr(options, f.name) for f in dataclasses.fields(Setting)})
  if options.serve:
    serve(options.serve, setting)
    return
  if setting.data:
    name, _, config = setting.data.partition("/")
    packed.pack(records.builder(name, config, setting.data_dir), "train")  # of which files are made
  without = {*options.without, *([] if setting.data else ["affjax, resident"])}
  others = [name for name in (*OURS[1:], *PEERS) if name not in without]
  start = lambda name: peers.Peer("scripts.benchmark_train", [f"--serve={name}", *arguments])
  every = {name: start(name) for name in (OURS[0], *others)}
  steps = max(1, math.ceil(options.seconds / every[OURS[0]](1)))
  times: dict[str, list[tuple[float, float]]] = {name: [] for name in others}
  for number in range(options.pairs):
    for name in others:
      order = (OURS[0], name) if number % 2 else (name, OURS[0])
      seen = {who: every[who](steps) for who in order}
      times[name].append((seen[OURS[0]], seen[name]))
    print(f"pair {number + 1}/{options.pairs}", file=sys.stderr, flush=True)
  for peer in every.values():
    peer.close()
  print(table(setting, times, steps))


def table(setting: Setting, times: dict[str, list[tuple[float, float]]], steps: int) -> str:
  """Medians, ratios and how near the device's products are."""
  work, peak = floor(setting)
  pairs = len(next(iter(times.values())))
  every = [mine for seen in times.values() for mine, _ in seen]
  rows = {OURS[0]: float(np.median(every))}
  rows |= {name: float(np.median([other for _, other in seen])) for name, seen in times.items()}
  lines = [
    f"ViT-{setting.variant}, {setting.image_size} px, {setting.batch_size} images,"
    f" {setting.dtype}, {setting.data or 'noise'}; {pairs} pairs of {steps} steps",
    f"a step is {work / 1e9:.1f} GFLOP; products alone at {peak.teraflops:.3g} TFLOP/s"
    f" ({peak.source}): {work / peak.teraflops / 1e9:.1f} ms",
    f"{'':18}{'ms a step':>10}{'images/s':>10}{'of peak':>9}   speed of affjax over it",
  ]
  for name, seconds in rows.items():
    line = f"{name:18}{1e3 * seconds:10.1f}{setting.batch_size / seconds:10.1f}"
    line += f"{work / seconds / peak.teraflops / 1e12:9.0%}"
    if name in times:
      mean, half = sweep.interval([math.log(other / mine) for mine, other in times[name]])
      low, high = math.exp(mean - half), math.exp(mean + half)
      line += f"   {math.exp(mean):.3f} [{low:.3f} {high:.3f}]"
    lines.append(line)
  mine, least = host_time(setting)
  lines.append(
    f"host's work: {mine:.0f} us a step, bare call {least:.0f} us, ratio {mine / least:.2f}"
  )
  return "\n".join(lines)


def floor(setting: Setting) -> tuple[float, Any]:
  """Floating-point operations of the ViT's step, and the device's peak."""
  import jax

  from affjax import cost
  from affjax.models import vit

  size, _, patch = setting.variant.partition("/")
  width, depth, _ = vit._SIZES[size]
  patches = (setting.image_size // int(patch)) ** 2
  each = 12 * width**2 * patches + 2 * patches**2 * width  # products of a block
  forward = 2 * (patches * 3 * int(patch) ** 2 * width + depth * each)
  work = 3 * forward * setting.batch_size
  return work, cost.peak(jax.devices(), setting.dtype)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--variant", default="S/16")
  add("--image_size", type=int, default=112, help="pixels")
  add("--batch_size", type=int, default=16)
  add("--dtype", default="float32", choices=("float32", "bfloat16"), help="of activations")
  add("--data", default="", help="a prepared data set, NAME or NAME/CONFIG; none: noise")
  add("--data_dir", help="where prepared data lives")
  add("--pairs", type=int, default=20)
  add("--seconds", type=float, default=3.0, help="of one turn, about")
  add("--without", nargs="*", default=[], choices=(*OURS[1:], *PEERS), help="peers to leave out")
  add("--serve", help=argparse.SUPPRESS)
  return parser.parse_args(arguments)


if __name__ == "__main__":
  main()
