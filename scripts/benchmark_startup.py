"""Seconds from the command to the first update, with and without what was compiled before.

  python -m scripts.benchmark_startup                                  # the debug config
  python -m scripts.benchmark_startup --config=configs/vit_mtl.py --repeats=5

Every row is the median of processes that are started anew, cold ones with an empty cache of
compiled programs, each followed by a warm one. `imports` ends when the run says what it is, which
is after everything was imported and the data opened; before it nothing is compiled.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
# What the run prints -> name of the moment.
MOMENTS = {"device ": "imports, data opened", "step 1/": "first update", "step 2/": "second"}


def main() -> None:
  """Starts the runs and prints the table."""
  options = parse()
  rows: dict[str, list[float]] = {}
  rows["python -c 'import affjax'"] = [importing("affjax") for _ in range(options.repeats)]
  rows["python -c 'import affjax.train'"] = [
    importing("affjax.train") for _ in range(options.repeats)
  ]
  for _ in range(options.repeats):
    with tempfile.TemporaryDirectory() as folder:
      for cache in ("cold", "warm"):
        for moment, seconds in started(options, Path(folder), cache).items():
          rows.setdefault(f"{cache}: {moment}", []).append(seconds)
  width = max(map(len, rows))
  print(f"{options.config}, {options.repeats} starts each, {os.cpu_count()} cores; seconds")
  for name, seconds in rows.items():
    print(f"{name:{width}}  {np.median(seconds):7.2f}  [{min(seconds):.2f} {max(seconds):.2f}]")


def importing(module: str) -> float:
  """Seconds of a process that imports a module."""
  start = time.perf_counter()
  subprocess.run([sys.executable, "-c", f"import {module}"], check=True, cwd=ROOT)
  return time.perf_counter() - start


def started(options: argparse.Namespace, folder: Path, name: str) -> dict[str, float]:
  """Moment -> seconds after the start, of a run that makes two updates."""
  command = [
    sys.executable, "-m", "affjax.main", f"--config={options.config}",
    f"--workdir={folder / name}", "--config.log_every=1", "--config.steps=2",
    "--config.optimizer.warmup_steps=0",
    *([f"--data_dir={options.data_dir}"] if options.data_dir else []),
  ]  # fmt: skip
  environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
  environment |= {"XDG_CACHE_HOME": str(folder / "cache"), "PYTHONUNBUFFERED": "1"}
  start, found, said = time.perf_counter(), {}, []
  process = subprocess.Popen(
    command,
    cwd=ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  for line in process.stdout:
    said.append(line)
    for begin, moment in MOMENTS.items():
      if line.startswith(begin):
        found.setdefault(moment, time.perf_counter() - start)
  if process.wait() or len(found) < len(MOMENTS):
    raise RuntimeError(f"{' '.join(command)} failed:\n{''.join(said[-20:])}")
  return found


def parse() -> argparse.Namespace:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--config", default="configs/vit_mtl.py:debug")
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument("--data_dir", help="where prepared data lives; it is made before the first")
  return parser.parse_args()


if __name__ == "__main__":
  main()
