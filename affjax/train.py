"""The main job: data, model, loop, scores. Stopped anywhere, it continues to the bit."""

import contextlib
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import grain
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from affjax import (
  checkpoints,
  cost,
  evaluate,
  experiment,
  initialise,
  monitor,
  procedures,
  report,
  resident,
  sharding,
  workdir,
)
from affjax.data import pipeline

PICTURE = "first_batch.png"
WEIGHTS = "weights.png"
PROFILE = "profile"
WARM = 10  # steps before the first that is traced


class Stop:
  """Ctrl-C and SIGTERM ask the loop to save and leave; a second Ctrl-C leaves at once."""

  def __init__(self) -> None:
    self.signal: int | None = None

  def __enter__(self) -> "Stop":
    self._before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
    return self

  def __exit__(self, *unused: object) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _ask(self, number: int, frame: FrameType | None) -> None:
    if self.signal is not None:
      raise KeyboardInterrupt
    self.signal = number

  def asked(self, step: int) -> bool:
    """Whether to stop before step `step + 1`; all processes agree."""
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self.signal is not None


class Profile:
  """A trace of some steps, for TensorBoard's profiler (XProf); a context manager.

  Args:
    folder: where it goes.
    first: the first step that is traced: later than those that compile.
    count: how many; 0: none.
  """

  def __init__(self, folder: Path, first: int, count: int) -> None:
    self._folder, self._first, self._last = folder, first, first + count
    self._on = False

  def __enter__(self) -> "Profile":
    return self

  def __exit__(self, *unused: object) -> None:
    self._stop()

  def before(self, step: int, flying: Any) -> None:
    """Starts or stops where it is time; `flying` is awaited, so that whole steps are traced."""
    if self._first < self._last and step in (self._first, self._last):
      jax.block_until_ready(flying)
      if step == self._first:
        jax.profiler.start_trace(str(self._folder))
        self._on = True
      else:
        self._stop()

  def _stop(self) -> None:
    if self._on:
      self._on = False
      jax.profiler.stop_trace()
      print(f"       profile in {self._folder}: tensorboard --logdir={self._folder}", flush=True)


def training_batches(
  config: Mapping[str, Any],
  data: experiment.Data,
  mesh: Mesh,
  start: int,
  held: resident.Resident | None = None,
) -> Iterator[Any]:
  """Global batches from step `start` on, copied to the devices ahead of the step.

  Of a split that the devices hold, they are the numbers of its rows.
  """
  split = data.records(data.train_split)
  rows = pipeline.order(len(split), config["seed"], config["batch_size"], data.strata)
  rows = rows[start : config["steps"]]
  if held:
    return held.rows(rows)
  local = pipeline.batches(
    split,
    rows,
    process=jax.process_index(),
    processes=jax.process_count(),
    workers=config["data"]["workers"],
    threads=config["data"]["threads"],
  )
  placed = local.map(lambda batch: sharding.global_batch(batch, mesh))
  return iter(grain.experimental.ThreadPrefetchIterDataset(placed, prefetch_buffer_size=2))


def run(config: Mapping[str, Any], where: Path, data_dir: str | None = None) -> dict[str, Any]:
  """Trains up to `config.steps`, continuing what `where` holds, and scores the best step.

  Args:
    config: plain nested dict, see `configs/`.
    where: the run's folder.
    data_dir: where prepared data lives; None: TFDS's default place.

  Returns:
    Split -> scores of the best step; empty if the run was stopped before its end.

  Raises:
    ValueError: before anything is compiled: the config, the data or the folder do not fit.
  """
  workdir.check(where, config)
  resolved, data, procedure, mesh = experiment.open_training(config, data_dir)
  choose = evaluate.evaluator(config, data, data.select, procedure, mesh, often=True)
  evaluate.check_metric(config, data)
  plan = experiment.placement(config, data, mesh)
  taken = None
  if not checkpoints.sealed(where / workdir.CHECKPOINTS):
    taken = initialise.read(config.get("initialise"), experiment.abstract_state(procedure, mesh))
  primary = jax.process_index() == 0
  if primary:
    facts = {"initialise": taken.facts} if taken else {}
    workdir.record(where, config, {"devices": [str(d) for d in jax.devices()], **facts})
    print(f"{experiment.describe(resolved, data, procedure, mesh)}\n       {plan}")
    print(f"run    {where}", flush=True)
  with Stop() as stop:
    finished = _loop(config, where, data, procedure, mesh, choose, stop, taken, plan)
  if not finished:
    print(f"stopped by signal {stop.signal}; the same command continues", flush=True)
    raise SystemExit(128 + (stop.signal or signal.SIGTERM))
  if primary:
    report.save_weights(where / WEIGHTS, where / monitor.LOG)
  return evaluate.score(config, where, data, procedure, mesh)


def _loop(
  config: Mapping[str, Any],
  where: Path,
  data: experiment.Data,
  procedure: Any,
  mesh: Mesh,
  choose: evaluate.Evaluator,
  stop: Stop,
  taken: initialise.Taken | None,
  plan: resident.Plan,
) -> bool:
  """The loop; returns whether it reached the last step."""
  primary = jax.process_index() == 0
  _, rules = experiment.open_mesh(config)
  abstract = experiment.abstract_state(procedure, mesh, rules)
  settings = config["checkpoint"]
  saved = checkpoints.Checkpoints(
    where / workdir.CHECKPOINTS,
    keep_last=settings["keep_last"],
    keep_best=settings["keep_best"],
  )
  position = {"seed": config["seed"], "fingerprint": data.summary["fingerprint"]}
  if saved.latest is None:
    # Read here only where checkpoints were there and all of them turned out to be damaged.
    taken = taken or initialise.read(config.get("initialise"), abstract)
    first = lambda arrays: initialise.fill(procedure.init(), arrays)
    placed = jax.tree.map(lambda x: x.sharding, abstract)
    # It runs once: where a CPU compiles it, that takes twice as long with all optimisations.
    quick = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    init = jax.jit(first, out_shardings=placed, compiler_options=quick)
    current = init(taken.arrays if taken else {})
    if taken and primary:
      print(taken.report, flush=True)
    start = 0
  else:
    start = saved.latest
    current, found = saved.restore(start, abstract)
    if found["fingerprint"] != position["fingerprint"]:
      raise ValueError(
        f"{where} was trained on other data than {data.build.data_dir} holds (fingerprint"
        f" {found['fingerprint'][:12]} against {position['fingerprint'][:12]})"
      )
    if primary:
      print(f"       continues from step {start}", flush=True)
  held = experiment.hold(config, data, mesh, plan) if start < config["steps"] else None
  train_step = experiment.train_step(procedure, abstract, mesh, held)
  batches = training_batches(config, data, mesh, start, held)
  ceilings = evaluate.ceilings(data, data.select, choose.scoring)
  step, pending, flying = start, None, None
  peak = None
  if primary:
    peak = cost.peak(list(mesh.devices.flat), procedures.activation_dtype(config["dtype"]))
    print(f"       MFU is of {peak.teraflops:.3g} TFLOP/s ({peak.source})", flush=True)
  watch = monitor.Monitor(
    where,
    tasks=config["labels"],
    steps=config["steps"],
    start=start,
    batch_size=config["batch_size"],
    primary=primary,
    flops=experiment.step_flops(config) if primary else 0.0,
    peak=peak,
  )
  traced = Profile(where / PROFILE, start + WARM, config.get("profile", 0))
  with contextlib.closing(saved), contextlib.closing(batches), watch, traced:
    while True:
      # Invariant: `current` has seen `step` updates and `batches` has given `step` batches.
      last = step == config["steps"]
      leaving = not last and stop.asked(step)
      evaluates = step > start and (last or step % config["evaluate"]["every"] == 0)
      if evaluates or leaving or last or step % settings["every"] == 0:
        if pending is not None:
          watch.train(*pending)  # before the save: the log must hold what the checkpoint has seen
          pending = None
        value = None
        if evaluates:
          with watch.spending("evaluation"):
            scores, floors = choose(current.averaged, current.model_state, progress=primary)
            watch.write(step, choose.name, scores)
            columns = {"score": scores, "floor": floors, "ceiling": ceilings}
            watch.say(evaluate.table(columns, f"step {step}, {choose.name}"))
            value = scores[settings["metric"]]
        if step > start:
          with watch.spending("checkpoints"):
            saved.save(step, current, position | {"step": step}, value)
      if last or leaving:
        break
      traced.before(step, flying)
      with watch.spending("data"):
        batch = next(batches)
      if step == 0:
        seen = jax.jit(held.batch)(held.arrays, batch) if held else batch
        _picture(where / PICTURE, procedure, seen, data, sharding.replicated(mesh))
      # The first time it is traced and compiled.
      with watch.spending("compile") if step == start else contextlib.nullcontext():
        current, metrics = train_step(current, batch)  # donates `current`
      if flying is not None:
        # One step in flight: the device never waits, and waiting for data is measured honestly.
        jax.block_until_ready(flying)
      flying = metrics
      if pending is not None:
        watch.train(*pending)
      step += 1
      watch.advance()
      pending = (step, metrics) if step % config["log_every"] == 0 else None
    if step > start:
      watch.summary()
  return last


def _picture(path: Path, procedure: Any, batch: Any, data: experiment.Data, whole: Any) -> None:
  """Draws what the network sees first."""
  images, labels, mask = jax.jit(procedure.view, out_shardings=whole)(batch, np.int32(0))
  if jax.process_index() == 0:
    report.save_batch(path, np.asarray(images), labels, mask, data.labels)
