"""What a run says while it runs: the terminal, JSON lines, TensorBoard."""

import collections
import contextlib
import functools
import json
import math
import resource
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
from tensorboardX import SummaryWriter
from tqdm import tqdm

from affjax import cost

LOG = "metrics.jsonl"
# What a line of training says of the machine; all else of it is the same wherever it runs again.
SPEED = ("images_per_second", "teraflops", "mfu", "waiting_for_data", "memory_gb")
# What the time of a run went to besides its steps, in the order in which it is said.
SPENT = ("compile", "data", "evaluation", "checkpoints")
# Of JAX; these do not contain each other. Tracing is not among them: its parts do.
_COMPILING = (
  "/jax/core/compile/jaxpr_to_mlir_module_duration",
  "/jax/core/compile/backend_compile_duration",
)


def cut_back(path: Path, step: int) -> None:
  """Drops the lines of later steps, and a last line that a kill cut short."""
  if not path.is_file():
    return
  kept = []
  for line in path.read_text().splitlines():
    try:
      entry = json.loads(line)
    except json.JSONDecodeError:
      continue
    if entry["step"] <= step:
      kept.append(line)
  partial = path.with_suffix(".partial")
  partial.write_text("".join(line + "\n" for line in kept))
  partial.rename(path)


class Monitor:
  """Collects the numbers of a run; a context manager.

  Args:
    workdir: gets `metrics.jsonl` and `tensorboard/`.
    tasks: names, in the order in which they are shown.
    steps: of the whole run.
    start: the step that the run continues from; what was logged beyond it is dropped.
    batch_size: of the global batch, for images/s.
    primary: whether this process writes and prints (one of them does).
    flops: floating-point operations of a step, by `cost.flops`.
    peak: what all devices together could do; None: not known.
  """

  def __init__(
    self,
    workdir: Path,
    *,
    tasks: Iterable[str],
    steps: int,
    start: int,
    batch_size: int,
    primary: bool,
    flops: float = 0.0,
    peak: cost.Peak | None = None,
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
      cut_back(workdir / LOG, start if start else -1)
      self._log = (workdir / LOG).open("a")
      # Events from `purge_step` on are hidden by TensorBoard: the run writes them anew.
      self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1)
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
    """Logs a step's numbers with speed and waiting since the last call.

    Raises:
      FloatingPointError: the loss is not finite.
    """
    values = {name: float(value) for name, value in values.items()}
    speed = self._speed(step)
    self.write(step, "train", values | speed)
    line = describe(self._tasks, values, speed)
    self._bar.set_postfix_str(line)
    if not self._live:
      left = self._batch_size * (self._steps - step) / max(speed["images_per_second"], 1e-9)
      self.say(f"step {step}/{self._steps}  {line}  ETA {tqdm.format_interval(left)}")
    for name in (n for n in values if n.startswith("loss")):
      if not math.isfinite(values[name]):
        raise FloatingPointError(f"step {step}: {name} is {values[name]}")

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
    """Adds a line to the JSON log and the same numbers to TensorBoard."""
    if not self._primary:
      return
    self._log.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
    self._log.flush()
    for name, value in values.items():
      self._events.add_scalar(f"{kind}/{name}", value, step)


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
