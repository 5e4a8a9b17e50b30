"""Ends a real training run at many moments and shows that nothing is lost.

  python scripts/kill_test.py --kills=20
  python scripts/kill_test.py --kills=50 --seed=1 --keep=kills     # portions: 50 now, 50 later,
  python scripts/kill_test.py --kills=50 --seed=2 --keep=kills     # their log and tables add up

A run is trained undisturbed. Then the same run is started and ended by a signal, started again and
ended again, and at last let through to its end. What it leaves must equal the undisturbed run bit
for bit: parameters, optimiser state, moving average, logged numbers, and the rows of the data that
each step saw. From start to start the number of data workers changes, or the images are in device
memory (`--workers=0,2,device`).

Moments come from a shuffled deck: each phase of a run (see PHASES) with each of SIGKILL, SIGTERM
and SIGINT, random moments, and the calls that make things last: the run is killed as it enters a
certain fsync or rename of a save (`scripts/kill_at_call.c`, which needs a C compiler; without one
these are moments in which a save is under way). After SIGTERM and SIGINT the exit code must say so.
Prints a line for each kill; exit code 1 if anything differs.
"""

import argparse
import collections
import contextlib
import fcntl
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PHASES = ("import", "data build", "opening", "compile", "step", "evaluation", "save", "scoring",
          "report")  # fmt: skip
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# What the run calls its phases -> what they are called here.
SAID = {"starting": "opening", "compiling": "compile", "training": "step",
        "evaluating": "evaluation", "scoring": "scoring",
        "drawing the report": "report"}  # fmt: skip
CALLS, RANDOM = 20, 12  # of each deck
EVERY = 2  # steps between saves
PATIENCE = 90  # seconds that a run may take to leave
LOG = "kills.jsonl"
# Files whose fsync or rename is hit, and up to which of these calls. A save makes about 150, most
# of them TensorStore's.
PLACES = (
  ("*/checkpoints/*", 450),
  ("*/checkpoints/*", 450),
  ("*-tmp/state", 4),  # Orbax's commit of an item
  ("*-tmp/position", 4),
  ("*/checkpoints/[0-9]", 3),  # and of a step
  ("*/checkpoints/[0-9][0-9]", 3),
  ("*/.manifest.json", 4),
  ("*/manifest.json", 4),
  ("*/.score.json", 2),
  ("*/score.json", 2),
  ("*/metrics.jsonl", 1),
  ("*/config.json", 1),
  ("*/scores.json", 1),
)


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
    f"--config.checkpoint.every={EVERY}",
    *([f"--data_dir={data_dir}"] if data_dir else []),
  ]


# --- inside the run


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


class Phase:
  """Where a run is, kept in a file for the process that ends it."""

  def __init__(self, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    self._file = os.open(path, os.O_WRONLY | os.O_CREAT)
    self._said, self._saves = "import", 0
    self._tell()

  def _tell(self) -> None:
    phase = "save" if self._saves else self._said
    os.pwrite(self._file, phase.ljust(20).encode(), 0)

  def say(self, phase: str) -> None:
    """The run's main thread is in a phase."""
    self._said = phase
    self._tell()

  @contextlib.contextmanager
  def within(self, phase: str) -> Iterator[None]:
    """It is in a phase for the length of a block."""
    before, self._said = self._said, phase
    self._tell()
    yield
    self.say(before)

  def saves(self, more: int) -> None:
    """One save more or less is under way, whatever the main thread does."""
    self._saves += more
    self._tell()


def inner(arguments: list[str]) -> None:
  """Runs the main job, with its phases and the rows of every step written beside its log."""
  where = Path(next(a for a in arguments if a.startswith("--workdir=")).partition("=")[2])
  phase = Phase(where.with_suffix(".phase"))
  from affjax import main

  run = main._run

  def watched(stop: Any) -> None:
    watch(phase, where)
    run(stop)

  main._run = watched
  sys.argv = ["affjax.main", *arguments]
  main.cli()


def watch(phase: Phase, where: Path) -> None:
  """Has the parts of a run tell their phase."""
  from affjax import checkpoints, stopping, train
  from affjax.data import prepare

  batches, build = train.training_batches, prepare._build
  save, seal = checkpoints.Checkpoints.save, checkpoints.Checkpoints._seal

  def built(*arguments: Any) -> None:
    with phase.within("data build"):
      build(*arguments)

  def saved(self: Any, *arguments: Any) -> None:
    phase.saves(1)
    save(self, *arguments)

  def sealed(self: Any, step: int) -> None:
    seal(self, step)
    phase.saves(-1)

  train.training_batches = lambda config, data, mesh, start, held: Recorded(
    batches(config, data, mesh, start, held), start, where / "rows.jsonl"
  )
  prepare._build = built
  checkpoints.Checkpoints.save, checkpoints.Checkpoints._seal = saved, sealed
  stopping.Stop.where = property(
    lambda self: self.__dict__["said"],
    lambda self, value: (self.__dict__.update(said=value), phase.say(SAID[value])),
  )
  phase.say("opening")


# --- outside it


def launch(arguments: list[str], log: Path, **environment: str) -> subprocess.Popen:
  """Starts the job in its own process group, so that its data workers can be killed with it."""
  return subprocess.Popen(
    arguments,
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **environment},
    stdout=log.open("a"),
    stderr=subprocess.STDOUT,
    start_new_session=True,
  )


def killer(folder: Path) -> Path | None:
  """Compiles what kills a run at a call; None: there is no compiler."""
  compiler, library = shutil.which("cc"), folder / f"kill_at_call_{os.getpid()}.so"
  if compiler is None:
    return None
  source = str(ROOT / "scripts" / "kill_at_call.c")
  subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), source, "-ldl"], check=True)
  return library


def temporary(workdir: Path) -> list[str]:
  """Names of saves that are not finished."""
  found = (workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*")
  return sorted(path.name for path in found)


def phase_of(run: Path) -> str:
  """Where a run says that it is."""
  path = run.with_suffix(".phase")
  return path.read_text().strip() if path.is_file() else "import"


def sealed(workdir: Path) -> int:
  """The last step on disk that counts; 0: none."""
  folder = workdir / "checkpoints"
  return max((int(p.parent.name) for p in folder.glob("[0-9]*/manifest.json")), default=0)


def seen(workdir: Path) -> list[tuple[int, list[int]]]:
  """(step, rows that it saw) of all starts, in order; of a line that a kill cut short nothing."""
  found, path = [], workdir / "rows.jsonl"
  for line in path.read_text().splitlines() if path.is_file() else ():
    with contextlib.suppress(json.JSONDecodeError):
      found.append(tuple(json.loads(line)))
  return found


def deck(chance: random.Random) -> list[tuple[str, signal.Signals]]:
  """Moments and signals, shuffled."""
  cards = [(phase, number) for phase in PHASES for number in SIGNALS]
  cards += [("call", signal.SIGKILL)] * CALLS
  cards += [("random", SIGNALS[i % 3]) for i in range(RANDOM)]
  chance.shuffle(cards)
  return cards


class Ender:
  """Starts a run and ends it.

  Args:
    folder: of the runs.
    config: what is trained.
    data_dir: where prepared data lives.
    length: seconds that an undisturbed start takes.
    chance: of the moments.
  """

  def __init__(
    self,
    folder: Path,
    config: str,
    data_dir: Path | None,
    length: float,
    chance: random.Random,
  ) -> None:
    self._config, self._data_dir = config, data_dir
    self._length, self._chance = length, chance
    self._killer = killer(folder)

  def start(self, run: Path, workers: str, *, anew: bool = False, **environment: str) -> Any:
    """Starts it; `anew`: with an empty place for its data, which it builds."""
    run.with_suffix(".phase").unlink(missing_ok=True)
    data_dir = run.with_suffix(".data") if anew else self._data_dir
    job = command(self._config, run, data_dir, workers)
    return launch(job, run.with_suffix(".log"), **environment)

  def end(self, run: Path, workers: str, moment: str, number: signal.Signals) -> dict[str, Any]:
    """Starts a run and ends it; says what was found: {"moment": "missed"} where it was quicker."""
    before, lines, begin = sealed(run), len(seen(run)), time.monotonic()
    says, environment = run.with_suffix(".call"), {}
    if moment == "call" and self._killer:
      pattern, most = self._chance.choice(PLACES)
      says.unlink(missing_ok=True)
      environment = dict(
        KILL_PATTERN=pattern,
        KILL_WHEN=str(self._chance.randint(1, most)),
        KILL_SAYS=str(says),
        LD_PRELOAD=str(self._killer),
      )
    process = self.start(run, workers, anew=moment == "data build", **environment)
    phase = ""
    if not environment and self._await(process, run, moment, begin):
      phase = phase_of(run)  # when the signal came; it may be in another before it has left
      # The run alone, as a cluster does; of a SIGKILL its workers have to be told.
      os.kill(process.pid, number)
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.wait(PATIENCE + self._length)
    hung, took = process.poll() is None, time.monotonic() - begin
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.returncode == 0:
      return {"moment": "missed"}
    last = sealed(run)
    done = [step for step, _ in seen(run)[lines:]][:-1]  # the last was under way
    found = {
      "moment": moment,
      "signal": number.name,
      "phase": phase or phase_of(run),
      "workers": workers,
      "seconds": round(took, 1),
      "exit": process.returncode,
      "from": before,
      "on_disk": last,
      "lost": max(0, max(done, default=-1) + 1 - last),
      "left": temporary(run),
    }
    if environment:
      call = says.read_text().strip() if says.is_file() else "none"
      found["call"] = re.sub(r"[0-9a-f]{32}|\d+", "N", call.replace(str(run), ""))
    if hung or process.returncode not in (-number, 128 + number):
      found["bad"] = "did not leave" if hung else f"exit code {process.returncode}"
    return found

  def _await(self, process: subprocess.Popen, run: Path, moment: str, begin: float) -> bool:
    """Waits for a moment; whether it came before the run's end."""
    limit = self._chance.uniform(0.5, self._length)
    late = self._chance.uniform(0, 0.4) if moment != "save" else self._chance.uniform(0, 0.05)
    while process.poll() is None:
      if moment == "random":
        if time.monotonic() - begin > limit:
          return True
      elif phase_of(run) == moment.replace("call", "save"):
        time.sleep(late)
        return process.poll() is None
      time.sleep(0.0005)
    return False


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


def differences(calm: Path, run: Path) -> list[str]:
  """Says where two finished runs differ; nothing if they do not, to the bit."""
  from affjax import monitor

  found = []
  left, right = arrays(calm), arrays(run)
  if set(left) != set(right):
    found.append(f"arrays: {set(left) ^ set(right)}")
  found += [k for k in left if k in right and left[k].tobytes() != right[k].tobytes()]
  log = lambda where: [
    {k: v for k, v in entry.items() if k not in monitor.SPEED}
    for entry in map(json.loads, (where / monitor.LOG).read_text().splitlines())
    if entry["kind"] != "time"
  ]
  if log(calm) != log(run):
    found.append("the logged numbers")
  expected = dict(seen(calm))
  # A step may have been seen several times: each time the same rows.
  found += [f"rows of step {step}" for step, rows in seen(run) if expected[step] != rows]
  scores = [json.loads((where / "scores.json").read_text()) for where in (calm, run)]
  if scores[0] != scores[1]:
    found.append("the scores")
  return found


def summary(entries: Iterable[dict[str, Any]]) -> str:
  """The log as tables: phases and signals, steps lost, calls that were hit, what was found bad."""
  entries = list(entries)
  kills = [e for e in entries if "phase" in e]
  runs = [e for e in entries if "differs" in e]
  count = collections.Counter((e["phase"], e["signal"]) for e in kills)
  names = [number.name for number in SIGNALS]
  lines = [f"{'phase':12}" + "".join(f"{name:>9}" for name in names)]
  lines += [f"{p:12}" + "".join(f"{count[p, n]:9}" for n in names) for p in PHASES]
  lost = collections.Counter(e["lost"] for e in kills)
  lines.append("steps lost   " + ", ".join(f"{n}: {lost[n]} kills" for n in sorted(lost)))
  asked = [e for e in kills if e["signal"] != "SIGKILL"]
  lines.append(f"of them after SIGTERM and SIGINT: {sum(e['lost'] for e in asked)}")
  by_workers = collections.Counter(e["workers"] for e in kills)
  lines.append("data workers " + ", ".join(f"{w}: {by_workers[w]}" for w in sorted(by_workers)))
  calls = collections.Counter(e["call"] for e in kills if "call" in e)
  lines += [f"  {n:3} at {call}" for call, n in calls.most_common()]
  left = sum(bool(e["left"]) for e in kills)
  bad = [e for e in kills if "bad" in e] + [e for e in runs if e["differs"]]
  equal = sum(not e["differs"] for e in runs)
  lines.append(
    f"{len(kills)} kills, {left} with a temporary folder left behind; {equal} of {len(runs)} runs"
    f" equal to the bit; {len(bad)} bad"
  )
  return "\n".join([*lines, *(f"BAD {e}" for e in bad)])


def main(argv: Sequence[str] | None = None) -> int:
  """The command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--config", default="configs/vit_mtl.py:debug", help="what is trained")
  parser.add_argument("--kills", type=int, default=20, help="how many in all")
  parser.add_argument("--each", type=int, default=5, help="how many of them a run at most")
  parser.add_argument(
    "--moments", default="", help="only these, such as save,call,evaluation; default the whole deck"
  )
  parser.add_argument(
    "--workers",
    default="0,2,device",
    help="data workers, one start after the other; device: the images are in device memory instead",
  )
  parser.add_argument("--data_dir", type=Path, help="where prepared data lives")
  parser.add_argument("--seed", type=int, default=0, help="of the moments")
  parser.add_argument("--keep", type=Path, help="folder for runs and log; default a temporary one")
  options = parser.parse_args(argv)
  with contextlib.ExitStack() as stack:
    folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
    folder.mkdir(parents=True, exist_ok=True)
    return portion(folder.resolve(), options)


def portion(folder: Path, options: argparse.Namespace) -> int:
  """Some kills more; returns the exit code."""
  workers = options.workers.split(",")
  chance = random.Random(options.seed)
  calm = folder / "calm"
  with (folder / ".calm").open("a+") as lock:  # portions may run beside each other
    fcntl.flock(lock, fcntl.LOCK_EX)
    lock.seek(0)
    length = float(lock.read() or 0)
    ender = Ender(folder, options.config, options.data_dir, length, chance)
    if not length:
      shutil.rmtree(calm, ignore_errors=True)
      begin = time.monotonic()
      if ender.start(calm, workers[0]).wait():
        print(calm.with_suffix(".log").read_text()[-3000:])
        return 1
      length = time.monotonic() - begin
      lock.write(str(length))
  print(f"undisturbed run: {length:.1f} s", flush=True)
  ender = Ender(folder, options.config, options.data_dir, length, chance)
  cards: list[tuple[str, signal.Signals]] = []
  wanted = set(filter(None, options.moments.split(",")))
  kills, number = 0, 0

  def write(**entry: Any) -> None:
    with (folder / LOG).open("a") as f:
      f.write(json.dumps({"seed": options.seed, "run": number, **entry}) + "\n")

  while kills < options.kills:
    number += 1
    run, mine = folder / f"killed_{options.seed}_{number}", 0
    shutil.rmtree(run, ignore_errors=True)
    starts, missed = 0, False
    while mine < options.each and kills < options.kills and not missed:
      while not cards:
        cards = [c for c in deck(chance) if not wanted or c[0] in wanted]
      how = workers[(starts + number) % len(workers)]
      starts += 1
      found = ender.end(run, how, *cards.pop())
      missed = found["moment"] == "missed"
      if not missed:
        kills, mine = kills + 1, mine + 1
        write(**found)
        print(f"  run {number}, kill {kills}: {json.dumps(found)}", flush=True)
    anew = run.with_suffix(".data").is_dir()  # a build that was ended is finished, too
    ended = ender.start(run, workers[(starts + number) % len(workers)], anew=anew).wait() == 0
    differ = differences(calm, run) if ended else ["it did not end"]
    write(kills=mine, differs=differ)
    print(f"run {number} after {mine} kills: {differ or 'equal to the bit'}", flush=True)
    if not ended:
      print(run.with_suffix(".log").read_text()[-3000:])
    elif not differ:
      for path in folder.glob(f"{run.name}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
  entries = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
  text = summary(entries)
  print(text)
  return int("\nBAD " in text)


if __name__ == "__main__":
  if "--inner" in sys.argv[1:2]:
    inner(sys.argv[2:])
  else:
    sys.exit(main())
