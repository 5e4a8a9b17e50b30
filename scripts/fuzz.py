"""Feeds mutated files and texts to every reader of the library and shows where one breaks.

  python -m scripts.fuzz --seconds=600
  python -m scripts.fuzz --seconds=60 --target annotations/mtl score/labels --log=fuzz.jsonl
  python -m scripts.fuzz --target score/labels --replay=CRASH

A reader gives for any input either a value that is what the input says, or a ValueError of one line
that names the file: `scripts/fuzz_targets.py` has the contracts and the seed corpora. Anything else
is a crash: another exception, a warning of numpy, a call of more than 5 s, more than 300 MB, the
death of the process. Each target has its share of the time and a process of its own, in which
atheris (the extra `fuzz`) leads mutations, its own and ours, to lines that have not run yet.

Prints a line for each target and totals; with --log both are kept and added up over runs. Inputs
that crash are saved in --folder; the exit code is 1 if there are any.
"""

import argparse
import faulthandler
import hashlib
import importlib.util
import json
import mmap
import os
import random
import re
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts import fuzz_mutations, fuzz_targets

ROOT = Path(__file__).resolve().parent.parent
HANG = 5.0  # seconds
MEMORY = 300e6  # bytes above what the process has after the seeds
TRACED = ["affjax", "configs", "tfds_builders", "scripts.convert_pickle"]
LONGEST = 1 << 18  # bytes of an input
DEATHS = 10  # of its process after which a target is given up
_STATE = struct.Struct("<QQQQ")  # inputs begun, ended, taken by the reader, length of the last


class Shared:
  """What a target's process tells the one that watches it: counts and the input in hand."""

  def __init__(self, path: Path) -> None:
    if not path.exists():
      path.write_bytes(bytes(_STATE.size + LONGEST))
    with path.open("r+b") as f:
      self._map = mmap.mmap(f.fileno(), 0)
    self.begun, self.ended, self.taken, _ = _STATE.unpack_from(self._map)

  def begin(self, data: bytes) -> None:
    """Writes down an input before it is given to the reader."""
    self.begun += 1
    self._map[_STATE.size : _STATE.size + len(data)] = data
    _STATE.pack_into(self._map, 0, self.begun, self.ended, self.taken, len(data))

  def end(self, taken: bool) -> None:
    """Writes down that the reader came back."""
    self.ended, self.taken = self.begun, self.taken + taken
    _STATE.pack_into(self._map, 0, self.begun, self.ended, self.taken, 0)

  def look(self) -> bytes:
    """Reads the counts; returns the input in hand, if any."""
    self.begun, self.ended, self.taken, length = _STATE.unpack_from(self._map)
    return self._map[_STATE.size : _STATE.size + length]


class Crashes:
  """Distinct crashes of a target: by exception and the lines of ours that it went through."""

  def __init__(self, folder: Path, target: str) -> None:
    self._folder, self._target = folder, target
    self._log = folder / f"{_file_name(target)}.crashes"
    self._log.touch()
    self.found = {c["where"]: c for c in map(json.loads, self._log.read_text().splitlines())}

  def forget(self) -> None:
    """Starts anew: a run counts what it has seen itself."""
    self._log.unlink()

  def add(self, where: str, text: str, data: bytes) -> None:
    """Keeps a crash, and its input, unless it is known."""
    if where in self.found:
      return
    file = f"{_file_name(self._target)}-{hashlib.sha256(data).hexdigest()[:10]}"
    (self._folder / file).write_bytes(data)
    self.found[where] = {"where": where, "text": text[-3000:], "input": file}
    with self._log.open("a") as f:
      f.write(json.dumps(self.found[where]) + "\n")


def _file_name(target: str) -> str:
  return target.replace("/", "-")


def _where(error: BaseException) -> str:
  """Names a crash by what was raised first and the last of our lines on the way there."""
  while error.__cause__ or error.__context__:
    error = error.__cause__ or error.__context__
  frames = traceback.extract_tb(error.__traceback__)
  ours = [f for f in frames if str(ROOT) in f.filename and "<" not in f.filename] or frames[-1:]
  at = [f"{Path(f.filename).name}:{f.lineno}" for f in ours[-2:]]
  what = re.sub(r"\W.*", "", str(error)) if isinstance(error, fuzz_targets.Broken) else ""
  return " ".join([type(error).__name__, what, *at])


def inner(target: str, seconds: int, seed: int, folder: Path, shared: Path) -> None:
  """Fuzzes one target in this process until the time is over or the process dies."""
  import atheris

  crashes = Crashes(folder, target)
  with tempfile.TemporaryDirectory(dir=shared.parent) as work:
    with atheris.instrument_imports(include=TRACED):
      seeds, check = fuzz_targets.TARGETS[target](Path(work))
      guarded(check, seeds, crashes)
    corpus = folder / "corpus" / _file_name(target)
    corpus.mkdir(parents=True, exist_ok=True)
    for content in seeds:
      (corpus / hashlib.sha256(content).hexdigest()[:16]).write_bytes(content)
    state = Shared(shared)

    def one(data: bytes) -> None:
      state.begin(data)
      said = guarded(check, [data], crashes)
      state.end(said == "")

    def mutate(data: bytes, most: int, number: int) -> bytes:
      rng = random.Random(number)
      way = rng.randrange(3)
      if way == 0:
        return atheris.Mutate(data, most)
      # Most of what has been kept is refused; what is near a valid input may be taken.
      return fuzz_mutations.mutate(rng.choice(seeds) if way == 1 else data, rng)[:most]

    options = {"max_total_time": seconds, "seed": seed, "max_len": LONGEST, "len_control": 0}
    options |= {"artifact_prefix": f"{work}/", "close_fd_mask": 3, "reload": 0}
    # Hangs, deaths and too much memory are seen by others: from outside, and by the system.
    options |= {"timeout": 3600, "rss_limit_mb": 0}
    options |= dict.fromkeys((f"handle_{n}" for n in ("segv", "bus", "abrt", "ill", "fpe")), 0)
    options["handle_usr1"] = 0
    arguments = [f"-{name}={value}" for name, value in options.items()]
    _limit_memory()
    atheris.Setup(["fuzz", *arguments, str(corpus)], one, custom_mutator=mutate)
    atheris.Fuzz()


def guarded(check: fuzz_targets.Check, inputs: Sequence[bytes], crashes: Crashes) -> str | None:
  """Checks inputs; what the reader said of the last one, None if it broke."""
  said: str | None = None
  for data in inputs:
    try:
      with warnings.catch_warnings():
        for category in (RuntimeWarning, UserWarning):  # numpy's are of these
          warnings.simplefilter("error", category)
        said = check(data)
    except KeyboardInterrupt:
      raise
    except BaseException as e:  # whatever it is, it is what is looked for
      crashes.add(_where(e), "".join(traceback.format_exception(e)), data)
      said = None
  return said


def _limit_memory() -> None:
  pages = int(Path("/proc/self/statm").read_text().split()[0])
  most = int(pages * resource.getpagesize() + MEMORY)
  resource.setrlimit(resource.RLIMIT_AS, (most, most))


class Watched:
  """A target's process and what has come of it.

  Args:
    target: its name.
    folder: for inputs that crash, and the corpus.
    scratch: for this run's files.
  """

  def __init__(self, target: str, folder: Path, scratch: Path) -> None:
    self.target, self.folder = target, folder
    Crashes(folder, target).forget()
    self._shared_file = scratch / f"{_file_name(target)}.state"
    self._deaths_file = scratch / f"{_file_name(target)}.stack"
    self.shared = Shared(self._shared_file)
    self.seconds = 0.0

  def run(self, seconds: int, seed: int) -> None:
    """Fuzzes for some seconds; a process that dies or hangs is started again."""
    for death in range(DEATHS):
      before = self.shared.begun
      self._watch(max(1, round(seconds - self.seconds)), seed + death)
      if self.shared.begun == before:
        Crashes(self.folder, self.target).add("it did not start", self._stack(), b"")
      if self.shared.begun == before or self.seconds > seconds - 1:
        return

  def _watch(self, seconds: int, seed: int) -> None:
    """One process: returns when it has ended, by itself or by our hand."""
    self.shared.end(taken=False)  # of an input at which the last process died
    before = self.shared.begun
    folder, shared = str(self.folder), str(self._shared_file)
    command = [self.target, str(seconds), str(seed), folder, shared, str(self._deaths_file)]
    process = subprocess.Popen(
      [sys.executable, "-X", "faulthandler", "-m", "scripts.fuzz", "--inner", *command],
      cwd=ROOT,
      env={**os.environ, "JAX_PLATFORMS": "cpu"},
      stdout=subprocess.DEVNULL,
      stderr=self._deaths_file.with_suffix(".errors").open("w"),
    )
    try:
      begin, hung = self._wait(process)
    finally:
      process.kill()
    data = self.shared.look()
    if self.shared.begun == before:
      return
    self.seconds += time.monotonic() - begin
    if process.wait():
      self._died("hang" if hung else f"death by {_signal(process.returncode)}", data)

  def _wait(self, process: subprocess.Popen) -> tuple[float, bool]:
    """Waits until the process has ended or hangs; when the first input was seen, and whether."""
    before = seen = self.shared.begun
    begin = last = time.monotonic()
    while process.poll() is None:
      time.sleep(0.05)
      now = time.monotonic()
      self.shared.look()
      if seen == before and self.shared.begun > before:
        begin = now
      if self.shared.begun > seen or self.shared.begun == self.shared.ended:
        seen, last = self.shared.begun, now
      if now - last > HANG:
        process.send_signal(signal.SIGUSR1)  # it writes down where it is
        time.sleep(0.5)
        return begin, True
      self._show(self.seconds + (now - begin) * (seen > before))
    return begin, False

  def _died(self, how: str, data: bytes) -> None:
    lines = [line for line in self._stack().splitlines() if line.startswith("  File")]
    ours = [line for line in lines if str(ROOT) in line and "scripts/fuzz.py" not in line]
    at = [re.sub(r'.*/(.*)", line (\d+).*', r"\1:\2", line) for line in ours[:2]]
    Crashes(self.folder, self.target).add(" ".join([how, *at]), how + "\n" + self._stack(), data)

  def _stack(self) -> str:
    """Where a process died, the innermost call first; else the last that it printed."""
    stack = self._deaths_file.read_text() if self._deaths_file.exists() else ""
    errors = self._deaths_file.with_suffix(".errors").read_text(errors="replace")
    return "\n".join(stack.splitlines()[:12]) or errors[-2000:]

  def _show(self, seconds: float) -> None:
    if sys.stderr.isatty():
      text = f"{self.target}: {self.shared.ended:,} inputs, {seconds:.0f} s"
      print(f"\r{text:70}", end="", file=sys.stderr, flush=True)


def _signal(code: int) -> str:
  return signal.Signals(-code).name if code < 0 else f"exit {code}"


def _row(name: str, executions: int, taken: int, seconds: float, crashes: int) -> str:
  share = f"{100 * taken / max(executions, 1):.0f} %"
  rate = executions / max(seconds, 1e-9)
  return f"{name:22}{executions:12,}{rate:10,.0f}{share:>8}{crashes:10}{seconds:9.0f}"


def _totals(entries: Sequence[dict[str, Any]]) -> tuple[int, int, float, int]:
  add = lambda key: sum(entry[key] for entry in entries)
  distinct = {(entry["target"], where) for entry in entries for where in entry["crashes"]}
  return add("executions"), add("taken"), add("seconds"), len(distinct)


def main(argv: Sequence[str] | None = None) -> int:
  """The command line."""
  options = parse(argv)
  if options.replay:
    return replay(options.target[0], options.replay)
  if not importlib.util.find_spec("atheris"):
    sys.exit("error: this needs atheris: pip install 'affjax[fuzz]'")
  options.folder.mkdir(parents=True, exist_ok=True)
  print(f"{'target':22}{'executions':>12}{'per s':>10}{'taken':>8}{'crashes':>10}{'s':>9}")
  entries, broken = [], []
  for target in options.target:
    entry, crashes = _fuzz(target, max(1, options.seconds // len(options.target)), options)
    entries.append(entry)
    broken += crashes
    row = _row(target, entry["executions"], entry["taken"], entry["seconds"], len(crashes))
    print("\r" * sys.stderr.isatty() + row, flush=True)
  _report(entries, broken, options)
  return int(bool(broken))


def _fuzz(
  target: str, seconds: int, options: argparse.Namespace
) -> tuple[dict[str, Any], list[dict[str, str]]]:
  """The entry of the log for one target, and its crashes."""
  with tempfile.TemporaryDirectory(dir=_memory()) as scratch:
    watched = Watched(target, options.folder, Path(scratch))
    watched.run(seconds, options.seed)
  crashes = Crashes(options.folder, target).found
  entry = {
    "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
    "target": target,
    "executions": watched.shared.begun,
    "taken": watched.shared.taken,
    "seconds": round(watched.seconds, 1),
    "crashes": sorted(crashes),
  }
  if options.log:
    with options.log.open("a") as f:
      f.write(json.dumps(entry) + "\n")
  return entry, list(crashes.values())


def _report(
  entries: Sequence[dict[str, Any]], broken: Sequence[dict[str, str]], options: argparse.Namespace
) -> None:
  executions, taken, seconds, crashes = _totals(entries)
  print(_row("this run", executions, taken, seconds, crashes))
  if options.log:
    every = [json.loads(line) for line in options.log.read_text().splitlines()]
    executions, taken, seconds, crashes = _totals(every)
    print(_row("all runs in the log", executions, taken, seconds, crashes))
  for crash in broken:
    print(f"\n{options.folder / crash['input']}: {crash['where']}")
    print("\n".join(crash["text"].strip().splitlines()[-12:]))


def _memory() -> str | None:
  """Where files are quick, if there is such a place."""
  return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def replay(target: str, file: Path) -> int:
  """Gives a reader one input, with the traceback where it breaks."""
  with tempfile.TemporaryDirectory() as work:
    _, check = fuzz_targets.TARGETS[target](Path(work))
    said = check(file.read_bytes())
  print(f"refused: {said}" if said else "taken")
  return 0


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  names = list(fuzz_targets.TARGETS)
  add = parser.add_argument
  add("--seconds", type=int, default=60, help="of all targets together; each has at least 1")
  add("--target", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
  add("--log", type=Path, help="JSON lines; runs add up there")
  add("--seed", type=int, default=1, help="of the mutations, above 0")
  add(
    "--folder",
    type=Path,
    default=Path(tempfile.gettempdir(), "affjax_fuzz"),
    help="for inputs that crash, and for the corpus, from which the next run goes on",
  )
  add("--replay", type=Path, metavar="FILE", help="give this input to the --target, no other")
  return parser.parse_args(argv)


def _inner(target: str, seconds: str, seed: str, folder: str, shared: str, stack: str) -> None:
  with Path(stack).open("w") as f:
    faulthandler.enable(f)
    faulthandler.register(signal.SIGUSR1, f)
    inner(target, int(seconds), int(seed), Path(folder), Path(shared))


if __name__ == "__main__":
  if "--inner" in sys.argv[1:2]:
    _inner(*sys.argv[2:])
  else:
    sys.exit(main())
