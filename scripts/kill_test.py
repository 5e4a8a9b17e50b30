"""Kills a real training run at many moments and shows that nothing is lost.

  python scripts/kill_test.py --kills=20

A run is trained undisturbed. Then the same run is started, killed with SIGKILL (at random moments,
and inside a save: the moment Orbax's temporary folder is seen), started again, and so on until it
ends. What it leaves must equal the undisturbed run bit for bit: parameters, optimiser state, moving
average, logged numbers, and the rows of the data that each step saw. From start to start the number
of data workers changes, or the images are in device memory (`--workers=0,2,device`). Prints a line
for each kill; exit code 1 if anything differs.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def command(config: str, workdir: Path, data_dir: Path | None, workers: str) -> list[str]:
  """The main job as a user types it; evaluation and saving often, so that they are hit."""
  placement = "device" if workers == "device" else "stream"
  return [
    sys.executable,
    str(Path(__file__)),
    "--inner",
    f"--config={config}",
    f"--workdir={workdir}",
    f"--config.data.placement={placement}",
    f"--config.data.workers={workers.replace('device', '0')}",
    "--config.log_every=1",
    "--config.checkpoint.every=2",
    *([f"--data_dir={data_dir}"] if data_dir else []),
  ]


class Recorded:
  """Batches of which every one's rows are written down."""

  def __init__(self, batches: Any, start: int, path: Path) -> None:
    self._batches, self._step, self._path = batches, start, path

  def __next__(self) -> Any:
    batch = next(self._batches)
    with self._path.open("a") as f:
      rows = batch["index"] if isinstance(batch, dict) else batch  # of a split in device memory
      f.write(json.dumps([self._step, rows.tolist()]) + "\n")
    self._step += 1
    return batch

  def close(self) -> None:
    """As the batches' own."""
    self._batches.close()


def inner(arguments: list[str]) -> None:
  """Runs the main job, with the rows of every step written beside its log."""
  from affjax import main, train

  where = Path(next(a for a in arguments if a.startswith("--workdir=")).partition("=")[2])
  original = train.training_batches
  train.training_batches = lambda config, data, mesh, start, held: Recorded(
    original(config, data, mesh, start, held), start, where / "rows.jsonl"
  )
  sys.argv = ["affjax.main", *arguments]
  main.cli()


def launch(arguments: list[str], log: Path) -> subprocess.Popen:
  """Starts the job in its own process group, so that its data workers can be killed with it."""
  environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
  return subprocess.Popen(
    arguments,
    cwd=ROOT,
    env=environment,
    stdout=log.open("a"),
    stderr=subprocess.STDOUT,
    start_new_session=True,
  )


def temporary(workdir: Path) -> dict[int, str]:
  """Folders of saves that are not finished: inode -> name."""
  found = {}
  for path in (workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"):
    with contextlib.suppress(FileNotFoundError):  # finished meanwhile
      found[path.stat().st_ino] = path.name
  return found


def kill(process: subprocess.Popen, moment: str, workdir: Path, limit: float) -> str:
  """Waits for the moment, kills, and says what was found: "ended" if the run was quicker."""
  begin = time.monotonic()
  before = set(temporary(workdir))  # left by the kill before this one
  while process.poll() is None:
    waited = time.monotonic() - begin
    if moment == "save" and set(temporary(workdir)) - before:
      break
    if moment == "random" and waited > limit:
      break
    time.sleep(0.0005)
  if process.poll() is not None:
    return "ended"
  os.killpg(process.pid, signal.SIGKILL)
  process.wait()
  steps = sorted(int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit())
  left = "".join(f", {name} left" for name in temporary(workdir).values())
  return f"killed after {time.monotonic() - begin:.1f} s, on disk {steps or 'nothing'}{left}"


def arrays(workdir: Path) -> dict:
  """Every array of the last checkpoint, without its topology."""
  import jax
  import numpy as np
  import orbax.checkpoint as ocp

  from affjax import checkpoints

  root = (workdir / "checkpoints").resolve()
  step = checkpoints.latest_intact(root, repair=False, say=print)
  tree = ocp.PyTreeCheckpointer().restore(root / str(step) / "state")
  return {
    jax.tree_util.keystr(path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def differences(a: Path, b: Path) -> list[str]:
  """Says where two finished runs differ; nothing if they do not, to the bit."""
  from affjax import monitor

  found = []
  left, right = arrays(a), arrays(b)
  if set(left) != set(right):
    found.append(f"arrays: {set(left) ^ set(right)}")
  found += [k for k in left if k in right and left[k].tobytes() != right[k].tobytes()]
  log = lambda where: [
    {k: v for k, v in entry.items() if k not in monitor.SPEED}
    for entry in map(json.loads, (where / monitor.LOG).read_text().splitlines())
    if entry["kind"] != "time"
  ]
  if log(a) != log(b):
    found.append("the logged numbers")
  # A step may have been seen several times: each time the same rows.
  rows = {}
  for line in (a / "rows.jsonl").read_text().splitlines():
    step, seen = json.loads(line)
    rows[step] = seen
  for line in (b / "rows.jsonl").read_text().splitlines():
    try:
      step, seen = json.loads(line)
    except json.JSONDecodeError:
      continue  # the kill came within the line
    if rows[step] != seen:
      found.append(f"rows of step {step}")
  return found


def main(argv: Sequence[str] | None = None) -> int:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--config", default="configs/vit_mtl.py:debug", help="what is trained")
  parser.add_argument("--kills", type=int, default=20, help="how many in all")
  parser.add_argument("--saves", type=int, default=8, help="how many of them inside a save")
  parser.add_argument(
    "--workers",
    default="0,2,device",
    help="data workers, one start after the other; device: the images are in device memory instead",
  )
  parser.add_argument("--data_dir", type=Path, help="where prepared data lives")
  parser.add_argument("--seed", type=int, default=0, help="of the moments")
  parser.add_argument("--keep", type=Path, help="folder for the runs; default a temporary one")
  arguments = parser.parse_args(argv)
  folder = arguments.keep or Path(tempfile.mkdtemp(prefix="affjax_kill_"))
  folder.mkdir(parents=True, exist_ok=True)
  workers = arguments.workers.split(",")
  calm = folder / "calm"
  begin = time.monotonic()
  log = folder / "calm.log"
  if launch(command(arguments.config, calm, arguments.data_dir, workers[0]), log).wait():
    print(log.read_text()[-3000:])
    return 1
  length = time.monotonic() - begin
  print(f"undisturbed run: {length:.1f} s", flush=True)
  chance = random.Random(arguments.seed)
  kills, saves, bad, number = 0, 0, 0, 0
  while kills < arguments.kills:
    number += 1
    run, ended, mine = folder / f"killed_{number}", False, []
    start = 0
    while not ended:
      many = workers[start % len(workers)]
      process = launch(
        command(arguments.config, run, arguments.data_dir, many), folder / f"killed_{number}.log"
      )
      start += 1
      # After a few kills a run is let through to its end, and another one begins.
      if kills >= arguments.kills or len(mine) >= 5:
        ended = process.wait() == 0
        if not ended:
          bad += 1
          print((folder / f"killed_{number}.log").read_text()[-3000:])
          break
        continue
      inside = saves < arguments.saves and (kills + number) % 2 == 0
      what = kill(process, "save" if inside else "random", run, chance.uniform(1, length))
      ended = what == "ended"
      if not ended:
        kills += 1
        saves += "left" in what
        mine.append(what)
        print(f"  run {number}, {many} workers, kill {kills}: {what}", flush=True)
    differ = differences(calm, run) if ended else ["it did not end"]
    bad += bool(differ)
    print(f"run {number} after {len(mine)} kills: {differ or 'equal to the bit'}", flush=True)
    if not differ and not arguments.keep:
      shutil.rmtree(run)
  print(f"{kills} kills, {saves} with a temporary folder left behind, {bad} bad runs")
  return int(bad > 0)


if __name__ == "__main__":
  if "--inner" in sys.argv[1:2]:
    inner(sys.argv[2:])
  else:
    sys.exit(main())
