"""Images a second from disk to a batch of uint8: our records, tf.data and PyTorch in one run.

  pip install -e ".[tensorflow,parity]"
  python -m scripts.benchmark_loader                       # the default synthetic faces
  python -m scripts.benchmark_loader --rounds=10 --without "tf.data" "torch, 2 workers"

Everyone reads the same JPEGs, shuffled over the whole split, in batches of 64, and gives uint8
arrays; augmentation is everybody's own affair, as ours runs on the device. The floor is what one
core decodes with simplejpeg from memory. Peers are processes of their own that work in turns, the
others sleeping; a row is the median over the rounds, beside the median of its ratio to the floor of
the same round. The first rows are held to one core, the rest have all of them. tf.data reads
TFRecords and decodes with its own kernel; PyTorch's DataLoader reads files with simplejpeg, with
each number of workers up to that of the cores.
"""

import argparse
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from affjax import host
from affjax.data import packed, pipeline, records
from scripts import peers

BATCH = 64
CORES = os.cpu_count() or 1
FLOOR = "bare decoding"


def contenders() -> dict[str, tuple[Callable[[argparse.Namespace], Iterator[Any]], int]]:
  """Name -> (what gives batches for ever, cores)."""
  one = {FLOOR: bare, "our records, no Grain": plain}
  one |= {f"affjax, {kind}": ours(kind, 0, 1) for kind in ("tfds", "encoded", "pixels")}
  many = {f"affjax, {kind}, {CORES} threads": ours(kind, 0, CORES) for kind in ("tfds", "encoded")}
  many[f"affjax, tfds, {CORES} workers"] = ours("tfds", CORES, 1)
  many["tf.data"] = tensorflow
  many |= {f"torch, {n} workers": torch(n) for n in range(CORES + 1)}
  return {n: (f, 1) for n, f in one.items()} | {n: (f, CORES) for n, f in many.items()}


def build(options: argparse.Namespace) -> Any:
  """The data set that is read."""
  name, _, config = options.data.partition("/")
  return records.builder(name, config, options.data_dir)


def opened(options: argparse.Namespace, kind: str) -> records.Records:
  """Its training split."""
  data, size = build(options), options.image_size
  images = records.Images(packed.shards(data, "train", kind, size), (size, size))
  return records.records(data, "train", {}, size, images=images)


def jpegs(options: argparse.Namespace) -> list[bytes]:
  """The first of its encoded images."""
  found = packed.shards(build(options), "train", "encoded", options.image_size)
  return found.read(range(min(len(found), 4096)))


def bare(options: argparse.Namespace) -> Iterator[int]:
  """Decodes images that are in memory, nothing else."""
  import simplejpeg

  images = jpegs(options)
  for start in itertools.count(0, BATCH):
    for i in range(start, start + BATCH):
      simplejpeg.decode_jpeg(images[i % len(images)], colorspace="RGB")
    yield BATCH


def plain(options: argparse.Namespace) -> Iterator[int]:
  """TFDS's records as batches, in a plain loop."""
  split = opened(options, "tfds")
  rng = np.random.default_rng(0)
  while True:
    yield len(split.batch(rng.integers(0, len(split), BATCH))["image"])


def ours(kind: str, workers: int, threads: int) -> Callable[[argparse.Namespace], Iterator[int]]:
  """As training reads them."""

  def batches(options: argparse.Namespace) -> Iterator[int]:
    split = opened(options, kind)
    order = pipeline.order(len(split), 0, BATCH)
    for batch in pipeline.batches(split, order, workers=workers, threads=threads):
      yield len(batch["image"])

  return batches


def tensorflow(options: argparse.Namespace) -> Iterator[int]:
  """tf.data as its guide has it: interleaved, shuffled, decoded in parallel, prefetched."""
  import tensorflow as tf

  with tempfile.TemporaryDirectory() as folder:
    path = str(Path(folder) / "images.tfrecord")
    with tf.io.TFRecordWriter(path) as writer:
      for image in jpegs(options):
        writer.write(image)
    auto = tf.data.AUTOTUNE
    data = tf.data.TFRecordDataset(path, num_parallel_reads=auto).cache().shuffle(4096).repeat()
    data = data.map(lambda x: tf.io.decode_jpeg(x, 3), auto).batch(BATCH).prefetch(auto)
    for batch in data.as_numpy_iterator():
      yield len(batch)


def torch(workers: int) -> Callable[[argparse.Namespace], Iterator[int]]:
  """PyTorch's DataLoader over files."""

  def batches(options: argparse.Namespace) -> Iterator[int]:
    from torch.utils import data

    with tempfile.TemporaryDirectory() as folder:
      images = jpegs(options)
      paths = [Path(folder) / f"{i}.jpg" for i in range(len(images))]
      for path, image in zip(paths, images, strict=True):
        path.write_bytes(image)
      more = dict(persistent_workers=True, prefetch_factor=4) if workers else {}
      loader = data.DataLoader(
        Files(paths), BATCH, shuffle=True, drop_last=True, num_workers=workers, **more
      )
      while True:
        for batch in loader:
          yield len(batch)

  return batches


class Files:
  """A data set of files, as PyTorch knows them."""

  def __init__(self, paths: Sequence[Path]) -> None:
    self._paths = paths

  def __len__(self) -> int:
    return len(self._paths)

  def __getitem__(self, row: int) -> np.ndarray:
    import simplejpeg

    return simplejpeg.decode_jpeg(self._paths[row].read_bytes(), colorspace="RGB")


def serve(options: argparse.Namespace) -> None:
  """Gives images/s over a second or so, for each line of standard input."""
  host.keep_memory()  # as training does; here for everyone
  make, cores = contenders()[options.serve]
  if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
  batches = make(options)
  for _ in range(20):
    next(batches)

  def measure(unused: str) -> float:
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < options.seconds:
      count += next(batches)
    return count / (time.perf_counter() - start)

  peers.serve(measure)


def main() -> None:
  """Measures everyone in turn and prints the table."""
  arguments = sys.argv[1:]
  options = parse(arguments)
  if options.serve:
    serve(options)
    return
  data = build(options)
  for pixels in (None, options.image_size):
    packed.pack(data, "train", pixels)
  names = [name for name in contenders() if name not in options.without]
  found: dict[str, list[float]] = {name: [] for name in names}
  for number in range(options.rounds):
    # Prefetched batches of a sleeping peer would be counted as its work: each starts anew.
    for name in names:
      with peers.Peer("scripts.benchmark_loader", [f"--serve={name}", *arguments]) as peer:
        found[name].append(peer())
    print(f"round {number + 1}/{options.rounds}", file=sys.stderr, flush=True)
  print(table(options, found))
  print(parts(options))


def parts(options: argparse.Namespace, rounds: int = 60) -> str:
  """Where the time of a packed image goes, on one core, microseconds: medians over batches."""
  split, images = opened(options, "encoded"), jpegs(options)[:BATCH]
  order = pipeline.order(len(split), 0, BATCH)
  out = np.empty((BATCH, options.image_size, options.image_size, 3), np.uint8)
  work: dict[str, Callable[[int], Any]] = {
    "decoding": lambda i: [records.decode_into(x, y) for x, y in zip(images, out, strict=True)],
    "reading": lambda i: split.images.shards.read(order_of[i]),
    "order": lambda i: order[i],
    "all without Grain": lambda i: split.batch(order[i]),
  }
  order_of = [order[i] for i in range(rounds)]
  found = {}
  for name, do in work.items():
    times = []
    for i in (*range(rounds), *range(rounds)):  # files are in memory the second time
      start = time.perf_counter()
      do(i)
      times.append(time.perf_counter() - start)
    found[name] = 1e6 * np.median(times[rounds:]) / BATCH
  return "us for a packed image: " + ", ".join(f"{name} {us:.1f}" for name, us in found.items())


def table(options: argparse.Namespace, found: dict[str, list[float]]) -> str:
  """Images a second and ratios to the floor, in all and for each core."""
  cores = {name: number for name, (_, number) in contenders().items()}
  lines = [
    f"{options.data}, {options.image_size} px, batches of {BATCH}; {options.rounds} rounds of"
    f" {options.seconds:g} s, {CORES} cores",
    f"{'':28}{'cores':>6}{'images/s':>10}{'a core':>9}  a core, of bare decoding",
  ]
  floor = np.array(found[FLOOR])
  for name, rates in found.items():
    share = np.array(rates) / cores[name] / floor
    lines.append(
      f"{name:28}{cores[name]:6}{np.median(rates):10,.0f}{np.median(rates) / cores[name]:9,.0f}"
      f"  {np.median(share):5.0%}  [{share.min():.0%} {share.max():.0%}]"
    )
  return "\n".join(lines)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--data", default="synthetic_faces/natural", help="a prepared data set and its config")
  add("--data_dir", help="where prepared data lives")
  add("--image_size", type=int, default=112, help="pixels")
  add("--rounds", type=int, default=5)
  add("--seconds", type=float, default=3.0, help="of one measurement")
  add("--without", nargs="*", default=[], choices=list(contenders()), help="peers to leave out")
  add("--serve", help=argparse.SUPPRESS)
  return parser.parse_args(arguments)


if __name__ == "__main__":
  main()
