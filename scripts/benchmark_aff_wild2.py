"""How fast, and in how much memory, Aff-Wild2 is prepared; and what a build that is killed keeps.

  python -m scripts.benchmark_aff_wild2                      # makes a tree of 200,000 lines first
  python -m scripts.benchmark_aff_wild2 --tree=FOLDER --config=va

The tree is that of `scripts.make_aff_wild2_tree`. It is prepared twice: once undisturbed; once with
a SIGKILL when half of its frames are written, and then prepared again. Both must hold the same
records, and those that are looked at (`--every`) the picture and the labels of their frame, by a
reading of the annotations that is this script's own. The floor is one process that reads all crops
and writes their bytes to one file. Files are read from memory where there is room for them, as they
have just been written or read. CPU time is that of all processes; what others do on the machine
changes it less than it changes frames a second.
"""

import argparse
import contextlib
import functools
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from tensorflow_datasets.proto import tf_example_pb2

from affjax.data import records
from scripts import make_aff_wild2_tree as trees
from tfds_builders import stage

ROOT = Path(__file__).resolve().parent.parent
MARKERS = {"va": -5.0, "expression": -1.0, "au": -1.0}  # of labels that are missing
OFFICIAL = 2_800_000  # frames, for which the time is extrapolated
LOOK = 0.2  # seconds between two looks at a build


def main() -> None:
  """Measures and prints the table."""
  options = parse()
  with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
    tree = options.tree or make_tree(Path(scratch) / "tree", options)
    floor, crops, size = copy(tree, Path(scratch) / "copy")
    whole, killed = Path(scratch) / "whole", Path(scratch) / "killed"
    undisturbed = prepare(options.config, tree, whole)
    first = prepare(options.config, tree, killed, until=crops // 2)
    kept = written(killed)
    second = prepare(options.config, tree, killed)
    built, again = opened(options.config, whole), opened(options.config, killed)
    same = digest(built) == digest(again)
    looked = check(tree, built, options.every)
    disk = sum(os.stat(path).st_size for shards in built.values() for path in shards.paths)
  count = sum(map(len, built.values()))
  print(
    f"{count:,} records, {len(os.sched_getaffinity(0))} cores; crops of {size / crops:,.0f} bytes"
  )
  print(f"{'':24}{'frames':>9}{'seconds':>9}{'frames/s':>10}{'CPU us':>8}  MB, and of a worker")
  print(row("floor", crops, floor))
  print(row("prepared", count, undisturbed))
  print(row("  until all was written", count, {"seconds": undisturbed["written"]}))
  print(row("killed; what it kept", kept, first))
  print(row("  and prepared again", count - kept, second))
  ratio = undisturbed["cpu"] / count / (floor["cpu"] / crops)
  print(f"a frame takes {ratio:.0f} times the CPU time of the floor; it is decoded to be checked")
  print(f"on disk {disk / 1e6:,.0f} MB, {disk / count:,.0f} bytes a record")
  print(f"{OFFICIAL:,} frames: {undisturbed['seconds'] / count * OFFICIAL / 3600:.2f} hours")
  print(f"prepared after the kill: {'the same records' if same else 'OTHER RECORDS'}")
  print(f"{looked:,} records looked at: each has the picture and the labels of its frame")
  sys.exit(not same)


def row(name: str, frames: int, run: dict[str, Any]) -> str:
  """A line of the table."""
  cpu = f"{run['cpu'] / frames * 1e6:8.0f}" if "cpu" in run else " " * 8
  peaks = f"  {run['peak']}, {run['worker']}" if "peak" in run else ""
  return f"{name:24}{frames:9,}{run['seconds']:9.1f}{frames / run['seconds']:10,.0f}{cpu}{peaks}"


def make_tree(folder: Path, options: argparse.Namespace) -> Path:
  """Writes a tree in a process of its own."""
  command = [sys.executable, "-m", "scripts.make_aff_wild2_tree", str(folder)]
  command += [f"--videos={options.videos}", f"--frames={options.frames}"]
  subprocess.run(command, check=True, cwd=ROOT)
  return folder


def copy(tree: Path, to: Path) -> tuple[dict[str, float], int, int]:
  """Copies all crops into one file in this process: how long it took, how many, their bytes."""
  crops = sorted(tree.rglob("*.jpg"))
  for path in crops:  # into memory
    path.read_bytes()
  start, busy, size = time.perf_counter(), time.process_time(), 0
  with to.open("wb") as file:
    for path in crops:
      size += file.write(path.read_bytes())
  took = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - busy}
  to.unlink()
  return took, len(crops), size


def prepare(config: str, tree: Path, data_dir: Path, until: int = 0) -> dict[str, Any]:
  """Prepares the data set.

  Args:
    config: of it.
    tree: its source.
    data_dir: where it goes.
    until: when so many records are in whole files, the process is killed; 0: it is not.

  Returns:
    `seconds` in all; `written`: seconds until all files were written and hashed, before labels are
    counted; `cpu`: seconds of all processes, not known of one that is killed; `peak`: MB of memory
    of the process that was started, `worker`: of the largest other.
  """
  command = [sys.executable, "-m", "affjax.data.prepare", "aff_wild2", f"--config={config}"]
  command += [f"--source={tree}", f"--data_dir={data_dir}"]
  start, busy, done, peaks = time.perf_counter(), used(), 0.0, {}
  process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
  while process.poll() is None:
    peaks |= memory(process.pid)
    if not done and list(data_dir.glob(f"aff_wild2/*/*/{records.MANIFEST}")):
      done = time.perf_counter() - start
    if until and written(data_dir) >= until:
      process.send_signal(signal.SIGKILL)
    time.sleep(LOOK)
  if process.returncode and not until:
    raise SystemExit(f"error: preparing ended with {process.returncode}")
  seconds, peak = time.perf_counter() - start, peaks.pop(process.pid)
  return {
    "seconds": seconds,
    "written": done or seconds,
    **({} if until else {"cpu": used() - busy}),
    "peak": peak,
    "worker": max(peaks.values(), default=0),
  }


def used() -> float:
  """CPU seconds of all processes that were started and have ended."""
  spent = resource.getrusage(resource.RUSAGE_CHILDREN)
  return spent.ru_utime + spent.ru_stime


def written(data_dir: Path) -> int:
  """How many records are in whole files of a build that goes on, or was killed."""
  count = 0
  for path in data_dir.glob(f"aff_wild2/*/{stage.PREFIX}*/*/*.json"):
    # It may just be written, or be gone.
    with contextlib.suppress(OSError, ValueError):
      count += json.loads(path.read_bytes())["records"]
  return count


def memory(process: int) -> dict[int, int]:
  """Process -> MB that it has held at most, of a process and those that it has started."""
  found = {}
  for pid in (process, *children(process)):
    try:
      status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it has ended
      continue
    peak = status.partition("VmHWM:")[2].split()
    found |= {pid: int(peak[0]) // 1000} if peak else {}
  return found


def children(process: int) -> list[int]:
  """Those that a process has started and that still run."""
  try:
    threads = list(Path(f"/proc/{process}/task").iterdir())
    return [int(pid) for thread in threads for pid in (thread / "children").read_text().split()]
  except OSError:
    return []


def opened(config: str, data_dir: Path) -> dict[str, records.Shards]:
  """Split -> its files."""
  built = records.builder("aff_wild2", config, str(data_dir))
  return {split: records.shards(built, split) for split in trees.SPLITS}


def digest(built: dict[str, records.Shards]) -> str:
  """A hash over all records, in their order."""
  found = hashlib.sha256()
  for shards in built.values():
    for row in range(len(shards)):
      found.update(shards.record(row))
  return found.hexdigest()


def check(tree: Path, built: dict[str, records.Shards], every: int) -> int:
  """Looks at some records; raises SystemExit if one has not the picture and labels of its frame.

  Returns:
    How many were looked at.
  """
  looked, numbers = 0, {}
  for split, shards in built.items():
    for place in range(0, len(shards), every):
      feature = tf_example_pb2.Example.FromString(shards.record(place)).features.feature
      video = feature["video"].bytes_list.value[0].decode()
      (frame,) = feature["frame"].int64_list.value
      number, seen = trees.number_of(simplejpeg.decode_jpeg(feature["image"].bytes_list.value[0]))
      right = seen == frame and numbers.setdefault(video, number) == number
      for task in trees.RATES:
        right &= labels_of(feature, task) == expected(tree, task, split, video, frame)
      if not right:
        raise SystemExit(f"error: {shards.where(place)} is not frame {frame} of {video}")
      looked += 1
  if len(set(numbers.values())) < len(numbers):
    raise SystemExit("error: two videos have the pictures of one")
  return looked


def labels_of(feature: Any, task: str) -> list[float]:
  """What a record says of a task, as the official files would; empty: nothing."""
  label, mask = (list(feature[f"{kind}/{task}"].float_list.value) for kind in ("labels", "mask"))
  if task == "expression":
    return [label.index(1)] if mask[0] else []
  return (
    [v if known else MARKERS[task] for v, known in zip(label, mask, strict=True)]
    if any(mask)
    else []
  )


def expected(tree: Path, task: str, split: str, video: str, frame: int) -> list[float]:
  """The same, of the line of a frame."""
  lines = lines_of(tree, task, split, video)
  values = [float(np.float32(v)) for v in lines[frame].split(",")] if frame < len(lines) else []
  return [] if set(values) <= {MARKERS[task]} else values


@functools.cache
def lines_of(tree: Path, task: str, split: str, video: str) -> list[str]:
  """All lines of an annotation file, so that line k is at k; none if there is no such file."""
  names = {folders[task] for folders in trees.GROUPS.values()}
  paths = tree.glob(f"*/*/{trees.SPLITS[split]}/{video}.txt")
  found = [path.read_text().splitlines() for path in paths if path.parts[-3] in names]
  return found[0] if found else []


def parse() -> argparse.Namespace:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--tree", type=Path, metavar="FOLDER", help="made before; default: one is made, and removed")
  add("--videos", type=int, default=50, help="of the tree that is made; default 50")
  add("--frames", type=int, default=200_000, help="its lines; default 200,000")
  add("--config", default="all", help="of aff_wild2; default all")
  add("--every", type=int, default=50, help="which records are looked at; default each 50th")
  add("--scratch", metavar="FOLDER", help="where all is written that is removed; default /tmp")
  return parser.parse_args()


if __name__ == "__main__":
  main()
