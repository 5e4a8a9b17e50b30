"""What a run says while it runs: the terminal, JSON lines, TensorBoard, W&B."""

import collections
import contextlib
import functools
import json
import os
import resource
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
from tqdm import tqdm

from affjax import cost

LOG = "metrics.jsonl"
WANDB = "wandb.json"
# What a line of training says of the machine; all else of it is the same wherever it runs again.
SPEED = ("images_per_second", "teraflops", "mfu", "waiting_for_data", "memory_gb")
# Kinds of lines that are written before a step is saved.
OF_A_STEP = ("train", "nonfinite", "time")
# What the time of a run went to besides its steps, in the order in which it is said.
SPENT = ("compile", "data", "evaluation", "checkpoints")
# Of JAX; these do not contain each other. Tracing is not among them: its parts do.
_COMPILING = (
  "/jax/core/compile/jaxpr_to_mlir_module_duration",
  "/jax/core/compile/backend_compile_duration",
)


def cut_back(path: Path, step: int, scored: bool) -> None:
  """Drops what a run that continues from `step` writes anew, and a last line that a kill cut short.

  That is the lines of later steps, and, where the step has not got its score, its evaluation.
  """
  if not path.is_file():
    return
  kept = []
  for line in path.read_text().splitlines():
    try:
      entry = json.loads(line)
    except json.JSONDecodeError:
      continue
    if entry["step"] < step or (entry["step"] == step and (scored or entry["kind"] in OF_A_STEP)):
      kept.append(line)
  _replace(path, "".join(line + "\n" for line in kept))


def _replace(path: Path, text: str) -> None:
  partial = path.with_suffix(".partial")
  partial.write_text(text)
  partial.rename(path)


def lines(path: Path, kind: str) -> list[dict[str, Any]]:
  """The entries of one kind in a log, in their order."""
  entries = map(json.loads, path.read_text().splitlines())
  return [entry for entry in entries if entry["kind"] == kind]


class Monitor:
  """Collects the numbers of a run; a context manager.

  Args:
    workdir: gets `metrics.jsonl` and `tensorboard/`.
    tasks: names, in the order in which they are shown.
    steps: of the whole run.
    start: the step that the run continues from; what was logged beyond it is dropped.
    scored: whether that step was evaluated and is not going to be again.
    batch_size: of the global batch, for images/s.
    primary: whether this process writes and prints (one of them does).
    flops: floating-point operations of a step, by `cost.flops`.
    peak: what all devices together could do; None: not known.
    wandb: gets the same numbers; None: nobody else does.
  """

  def __init__(
    self,
    workdir: Path,
    *,
    tasks: Iterable[str],
    steps: int,
    start: int,
    scored: bool = False,
    batch_size: int,
    primary: bool,
    flops: float = 0.0,
    peak: cost.Peak | None = None,
    wandb: "Wandb | None" = None,
  ) -> None:
    self._tasks = tuple(tasks)
    self._primary = primary
    self._steps = steps
    self._batch_size = batch_size
    self._flops, self._peak = flops, peak
    self._compiling = _compiling()
    self._compiled_before = self._compiling.seconds
    self._spent: dict[str, float] = collections.defaultdict(float)
    self._seen = self.spent  # at the last line
    self._began = self._since = time.perf_counter()
    self._last = start
    if primary:
      cut_back(workdir / LOG, start if start else -1, scored)
      self._log = (workdir / LOG).open("a")
      self._wandb = wandb or Wandb(None, workdir)
      self._wandb.catch_up(workdir / LOG)
      self._events = _Events(workdir / "tensorboard", start + 1)
    live = primary and sys.stderr.isatty()
    self._bar = tqdm(total=steps, initial=start, unit="step", disable=not live, dynamic_ncols=True)
    self._live = live

  def __enter__(self) -> "Monitor":
    return self

  def __exit__(
    self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
  ) -> None:
    self._bar.close()
    if self._primary:
      self._events.close()
      self._log.close()

  def say(self, text: str) -> None:
    """Prints text above the live line."""
    if self._primary:
      with self._bar.external_write_mode(sys.stdout):
        print(text, flush=True)

  @contextlib.contextmanager
  def spending(self, on: str) -> Iterator[None]:
    """Times a block that is no training, one of SPENT; what is compiled in it counts as that."""
    before, start = self._compiling.seconds, time.perf_counter()
    try:
      yield
    finally:
      compiled = self._compiling.seconds - before
      self._spent[on] += time.perf_counter() - start - compiled

  @property
  def spent(self) -> dict[str, float]:
    """Seconds so far, for each of SPENT."""
    compiled = self._compiling.seconds - self._compiled_before
    return {name: self._spent[name] + compiled * (name == "compile") for name in SPENT}

  def summary(self) -> dict[str, float]:
    """Says what the time since the start went to; also as a line of the log.

    Returns:
      Seconds in all and for each of SPENT and `steps` (all the rest), and `goodput`, the share of
      the steps.
    """
    total, spent = time.perf_counter() - self._began, self.spent
    steps = max(total - sum(spent.values()), 0.0)
    found = {"seconds": total, "steps": steps, **spent, "goodput": steps / max(total, 1e-9)}
    self.write(self._last, "time", found)
    others = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in spent.items())
    self.say(f"time   {found['goodput']:.1%} of {total:.0f} s in steps; {others}")
    return found

  def advance(self) -> None:
    """One step was dispatched."""
    self._bar.update()

  def train(self, step: int, values: Mapping[str, Any]) -> None:
    """Logs a step's numbers with speed and waiting since the last call."""
    values = {name: float(value) for name, value in values.items()}
    speed = self._speed(step)
    self.write(step, "train", values | speed)
    line = describe(self._tasks, values, speed)
    self._bar.set_postfix_str(line)
    if not self._live:
      left = self._batch_size * (self._steps - step) / max(speed["images_per_second"], 1e-9)
      self.say(f"step {step}/{self._steps}  {line}  ETA {tqdm.format_interval(left)}")

  def _speed(self, step: int) -> dict[str, float]:
    """SPEED since the last line."""
    now, spent = time.perf_counter(), self.spent
    since = {name: spent[name] - self._seen[name] for name in SPENT}
    busy = max(now - self._since - sum(since.values()) + since["data"], 1e-9)
    steps = step - self._last
    self._since, self._last, self._seen = now, step, spent
    speed = {
      "images_per_second": steps * self._batch_size / busy,
      "waiting_for_data": since["data"] / busy,
      "memory_gb": memory() / 1e9,
    }
    if self._flops:
      speed["teraflops"] = steps * self._flops / busy / 1e12
      if self._peak:
        speed["mfu"] = speed["teraflops"] / self._peak.teraflops
    return speed

  def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
    """Adds a line to the JSON log and the same numbers to TensorBoard and W&B."""
    if not self._primary:
      return
    self._log.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
    self._log.flush()
    self._events.add({f"{kind}/{name}": value for name, value in values.items()}, step)
    self._wandb.add(step, kind, values)


@functools.cache
def _tensorboard() -> tuple[Any, Any, Any]:
  """tensorboardX's writer of files and its messages: EventsWriter, event_pb2, summary_pb2.

  It imports torch where that is installed, for seconds and for nothing that is used here: while it
  is imported there is no torch.
  """
  hidden = [] if "torch" in sys.modules else ["torch"]
  sys.modules.update(dict.fromkeys(hidden))
  try:
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto import event_pb2, summary_pb2
  finally:
    for name in hidden:
      del sys.modules[name]
  return EventsWriter, event_pb2, summary_pb2


class _Events:
  """Scalars for TensorBoard, written by the caller's own thread.

  (tensorboardX's SummaryWriter has a thread of its own. If that ends, because the disk is full,
  whoever adds scalars waits for it for ever.)

  Args:
    folder: of the event files; this writes a new one.
    first: events of earlier starts are hidden from this step on: the run writes them anew.
  """

  def __init__(self, folder: Path, first: int) -> None:
    folder.mkdir(exist_ok=True)
    writer, self._event, self._summary = _tensorboard()
    self._writer = writer(str(folder / "events"), f".{os.getpid()}")
    start = self._event.SessionLog(status=self._event.SessionLog.START)
    self._write(step=first, session_log=start)

  def add(self, values: Mapping[str, float], step: int) -> None:
    """Writes named numbers of a step."""
    summary = self._summary.Summary(
      value=[self._summary.Summary.Value(tag=n, simple_value=v) for n, v in values.items()]
    )
    self._write(step=step, summary=summary)
    self._writer.flush()

  def _write(self, **content: Any) -> None:
    self._writer.write_event(self._event.Event(wall_time=time.time(), **content))

  def close(self) -> None:
    """Closes the file."""
    self._writer.close()


class Wandb:
  """The numbers of a run at Weights & Biases; what fails there later does not stop the run.

  A run that is continued is continued there. W&B takes nothing back, so that what it has got is not
  sent again: it would be the same, but for the speed.

  Args:
    project: where W&B shows the run beside others; None: all of this does nothing.
    workdir: of the run; gets WANDB and, in `wandb/`, W&B's own files.

  Raises:
    ValueError: the extra is not installed.
  """

  def __init__(self, project: str | None, workdir: Path) -> None:
    self._project, self._workdir, self._run = project, workdir, None
    self._failures: tuple[type[Exception], ...] = ()
    if project is None:
      return
    try:  # names, as a folder `wandb` (W&B leaves such) is imported too where there is no W&B
      from wandb import Error, Settings, init
      from wandb.errors import AuthenticationError, UsageError
      from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError
    except ImportError as e:
      raise ValueError(
        f'config.wandb={project}: {e}: pip install "affjax[wandb]", or leave config.wandb out'
      ) from None
    self._init, self._settings = init, Settings
    self._refusals = (AuthenticationError, UsageError)
    self._failures = (Error, OSError, HandleAbandonedError, MailboxClosedError)

  @contextlib.contextmanager
  def open(self, facts: Mapping[str, Any]) -> Iterator[None]:
    """Is connected to W&B for the time of a block.

    Args:
      facts: what W&B shows as the run's config.

    Raises:
      ValueError: before the block: W&B does not know who asks, or refuses the project's name.
    """
    if self._project is not None:
      self._sent = self._read()
      with self._surviving():
        self._connect(facts)
    code = 1
    try:
      yield
      code = 0
    finally:
      with self._surviving():
        if self._run:
          self._run.finish(exit_code=code)

  def _connect(self, facts: Mapping[str, Any]) -> None:
    try:
      self._run = self._init(
        project=self._project,
        id=self._sent["id"],
        name=str(self._workdir),
        dir=self._workdir,
        config=dict(facts),
        allow_val_change=True,
        resume="allow",
        reinit="create_new",
        # Where the network is gone W&B would wait for it at the end, for ever.
        settings=self._settings(
          console="off", silent=True, finish_timeout=60, finish_timeout_raises=True
        ),
      )
    except self._refusals as e:
      raise ValueError(
        f"config.wandb={self._project}: {' '.join(str(e).split())} (or set WANDB_MODE=offline, or"
        " leave config.wandb out)"
      ) from None
    self._run.define_metric("*", step_metric="step")  # W&B's own counts what it is sent
    place = "offline" if self._run.offline else self._run.url
    print(f"       W&B: {place}, {self._workdir / 'wandb'}", flush=True)

  @contextlib.contextmanager
  def _surviving(self) -> Iterator[None]:
    try:
      yield
    except self._failures as e:
      self._run = None
      why = " ".join(str(e).split()) or type(e).__name__
      tqdm.write(
        f"warning: W&B: {why}: the run goes on without it; its next start sends what is missing,"
        f" `wandb sync` what is in {self._workdir / 'wandb'}",
        file=sys.stderr,
      )

  def _read(self) -> dict[str, Any]:
    """WANDB: the run's id there, the last step that was sent, and the kinds of its lines."""
    path = self._workdir / WANDB
    if not path.is_file():
      return {"id": uuid.uuid4().hex[:12], "step": -1, "kinds": []}
    try:
      sent = json.loads(path.read_text())
      return {"id": str(sent["id"]), "step": int(sent["step"]), "kinds": list(sent["kinds"])}
    except (ValueError, TypeError, LookupError):
      raise ValueError(
        f"{path} does not say which run of W&B this is: remove it to begin another one there"
      ) from None

  def add(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
    """Sends the numbers of a line of the log, unless that was done by an earlier start."""
    sent = self._sent if self._run else None
    if not sent or step < sent["step"] or (step == sent["step"] and kind in sent["kinds"]):
      return
    with self._surviving():
      self._run.log({"step": step} | {f"{kind}/{name}": value for name, value in values.items()})
      kinds = sent["kinds"] if step == sent["step"] else []
      sent |= {"step": step, "kinds": [*kinds, kind]}
      _replace(self._workdir / WANDB, json.dumps(sent))

  def catch_up(self, log: Path) -> None:
    """Sends the lines of a log that were not sent, as W&B was off or out of reach."""
    for entry in map(json.loads, log.read_text().splitlines() if self._run else ()):
      self.add(entry.pop("step"), entry.pop("kind"), entry)

  def result(self, result: Mapping[str, Any]) -> None:
    """Sends what a run ends with, for the table of runs."""
    with self._surviving():
      if self._run:
        self._run.summary.update({"best": dict(result)})


def describe(tasks: Iterable[str], values: Mapping[str, float], speed: Mapping[str, float]) -> str:
  """One line: losses per task with the weights that they have, speed, waiting, memory."""
  parts = [f"loss {values['loss']:.3f}"]
  for task in tasks:
    weight = values[f"weight/{task}"]
    loss = values[f"loss/{task}"]
    parts.append(f"{task} {loss:.3f} x{weight:.2f}" if weight else f"{task} unlabelled")
  parts.append(f"{speed['images_per_second']:.0f} img/s")
  if "teraflops" in speed:
    parts.append(f"{speed['teraflops']:.3g} TFLOP/s")
  if "mfu" in speed:
    parts.append(f"MFU {speed['mfu']:.0%}")
  parts.append(f"data {speed['waiting_for_data']:.0%}")
  parts.append(f"{speed['memory_gb']:.1f} GB")
  return "  ".join(parts)


def memory() -> int:
  """The most bytes that were in use so far: of this process's devices that which used most.

  Of the host where the devices are CPUs, which say nothing of their own.
  """
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  if peaks := [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]:
    return max(peaks)
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
    1 if sys.platform == "darwin" else 1024
  )


class _Compiling:
  """Seconds that JAX has spent compiling in this process."""

  def __init__(self) -> None:
    self.seconds = 0.0
    jax.monitoring.register_event_duration_secs_listener(self._heard)

  def _heard(self, event: str, seconds: float, **unused: Any) -> None:
    if event in _COMPILING:
      self.seconds += seconds


@functools.cache
def _compiling() -> _Compiling:
  return _Compiling()  # one for all runs: listeners cannot be taken back
