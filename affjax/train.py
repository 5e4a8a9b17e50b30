"""The main job: data, model, loop, scores. Stopped anywhere, it continues to the bit."""

import contextlib
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from affjax import (
  checkpoints,
  cost,
  evaluate,
  experiment,
  finite,
  initialise,
  monitor,
  procedures,
  report,
  resident,
  sharding,
  stopping,
  workdir,
)
from affjax.data import pipeline

PICTURE = "first_batch.png"
DRAWN = 64  # images, or clips, in it at most
PROFILE = "profile"
WARM = 10  # steps before the first that is traced


# What to change where memory is short.
SMALLER_STEP = (
  "use a smaller config.batch_size or config.model.encoder.variant, config.accumulate=2 or more, or"
  " config.model.encoder.remat=True; on several devices config.mesh.rules=fsdp"
)
SMALLER_EVALUATION = "use a smaller config.evaluate.batch_size, or config.data.placement=stream"


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
  rows = experiment.order(config, data)[start : config["steps"]]
  if held:
    return held.rows(rows)
  local = pipeline.batches(
    data.training,
    rows,
    process=jax.process_index(),
    processes=jax.process_count(),
    workers=config["data"]["workers"],
    threads=config["data"]["threads"],
    taught=experiment.taught(config, data),
  )
  placed = local.map(lambda batch: sharding.global_batch(batch, mesh))
  return iter(grain.experimental.ThreadPrefetchIterDataset(placed, prefetch_buffer_size=2))


def run(
  config: Mapping[str, Any],
  where: Path,
  data_dir: str | None = None,
  stop: stopping.Stop | None = None,
) -> dict[str, Any]:
  """Trains up to `config.steps`, continuing what `where` holds, and scores the best step.

  Args:
    config: plain nested dict, see `configs/`.
    where: the run's folder.
    data_dir: where prepared data lives; None: TFDS's default place.
    stop: what hears signals, already at work; None: one is set to work here.

  Returns:
    Split -> scores of the best step.

  Raises:
    ValueError: before anything is compiled: the config, the data or the folder do not fit, or
      another run has the folder. Later: a checkpoint could not be saved, or memory is short.
    FloatingPointError: loss or gradient are not finite, and `config.nonfinite` is "stop".
    SystemExit: the run was stopped by a signal; what it did is saved.
  """
  with contextlib.ExitStack() as held:
    if stop is None:
      stop = held.enter_context(stopping.Stop())
    finite.choice(config)
    sent = monitor.Wandb(config.get("wandb"), where)
    workdir.check(where, config)
    resolved, data, procedure, mesh = experiment.open_training(config, data_dir)
    choose = evaluate.evaluator(config, data, data.select, procedure, mesh, often=True)
    evaluate.check_metric(config, data)
    plan = experiment.placement(config, data, mesh)
    abstract = experiment.abstract_state(procedure, mesh)
    taken = None
    if not checkpoints.sealed(where / workdir.CHECKPOINTS):
      taken = initialise.start(config, abstract)
    primary = jax.process_index() == 0
    if primary:
      held.enter_context(workdir.claim(where))
      facts = {"initialise": taken.facts} if taken else {}
      devices = [str(d) for d in jax.devices()]
      started = workdir.record(where, config, {"devices": devices, **facts})
      print(f"{experiment.describe(resolved, data, procedure, mesh)}\n       {plan}")
      print(f"run    {where}", flush=True)
      held.enter_context(sent.open({**config, "start": started}))
    finished = _loop(config, where, data, procedure, mesh, choose, stop, taken, plan, sent)
    if not finished:
      stopping.say(stop.signal, "training")
      raise SystemExit(stopping.code(stop.signal or signal.SIGTERM))
    facts = {}
    skipped = (
      [e["step"] for e in monitor.lines(where / monitor.LOG, "nonfinite")] if primary else []
    )
    if skipped:
      print(f"       {len(skipped)} updates were not finite and were skipped: steps {skipped}")
      facts = {"skipped_updates": skipped}
    stop.where = "scoring"
    rows: dict[str, evaluate.Outputs] = {}
    with cost.memory_for("an evaluation", SMALLER_EVALUATION):
      result = evaluate.score(config, where, data, procedure, mesh, facts=facts, rows=rows)
    sent.result(result)
    if primary and config.get("draw_report", True):
      stop.where = "drawing the report"
      report.attempt(where, config, data, result, rows)
    return result


def _loop(
  config: Mapping[str, Any],
  where: Path,
  data: experiment.Data,
  procedure: Any,
  mesh: Mesh,
  choose: evaluate.Evaluator,
  stop: stopping.Stop,
  taken: initialise.Taken | None,
  plan: resident.Plan,
  sent: monitor.Wandb,
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
  stop.saved = saved.wait
  position = {"seed": config["seed"], "fingerprint": data.fingerprint}
  start = saved.latest or 0
  if primary and start < config["steps"]:
    _check_room(where, abstract)
  with cost.memory_for("the state and the training images", SMALLER_STEP):
    current = _first_state(config, where, data, procedure, abstract, saved, taken)
    held = experiment.hold(config, data, mesh, plan) if start < config["steps"] else None
  skips = finite.choice(config) == "skip"
  train_step = experiment.train_step(procedure, abstract, mesh, held, skips)
  batches = training_batches(config, data, mesh, start, held)
  ceilings = evaluate.ceilings(data, data.select, choose.scoring)
  step, pending, flying, scored = start, None, None, saved.scored
  peak = None
  if primary:
    peak = cost.peak(list(mesh.devices.flat), procedures.activation_dtype(config["dtype"]))
    print(f"       MFU is of {peak.teraflops:.3g} TFLOP/s ({peak.source})", flush=True)
  watch = monitor.Monitor(
    where,
    tasks=config["labels"],
    steps=config["steps"],
    start=start,
    scored=scored,
    batch_size=config["batch_size"] * (data.clips.length or 1),
    primary=primary,
    flops=experiment.step_flops(config) if primary else 0.0,
    peak=peak,
    wandb=sent,
  )
  traced = Profile(where / PROFILE, start + WARM, config.get("profile", 0))
  # What was not skipped has gone into the parameters, and only a checkpoint is from before it.
  before = lambda: current if skips else _saved_state(procedure, abstract, saved)
  look = lambda: _look(flying, config, data, procedure, before, watch)
  short = cost.memory_for("a training step", SMALLER_STEP)
  with contextlib.closing(saved), contextlib.closing(batches), watch, traced, short:
    while True:
      # Invariant: `current` has seen `step` updates and `batches` has given `step` batches.
      last = step == config["steps"]
      leaving = not last and stop.asked(step)
      evaluates = step > 0 and not scored and (last or step % config["evaluate"]["every"] == 0)
      if evaluates or leaving or last or step % settings["every"] == 0:
        look()
        flying = None  # the state is about to be read, so it has landed
        if pending is not None:
          watch.train(*pending)  # before the save: the log must hold what the checkpoint has seen
          pending = None
        if step > start:
          with watch.spending("checkpoints"):
            saved.save(step, current, position | {"step": step})
          stop.holds = False
        if evaluates and not leaving:
          stop.where = "evaluating"
          with watch.spending("evaluation"), cost.memory_for("an evaluation", SMALLER_EVALUATION):
            scores, floors = choose(current.averaged, current.model_state, progress=primary)
            watch.write(step, choose.name, scores)
            columns = {"score": scores, "floor": floors, "ceiling": ceilings}
            watch.say(evaluate.table(columns, f"step {step}, {choose.name}"))
          saved.score(step, scores[settings["metric"]])
          stop.where = "training"
      if last or leaving:
        break
      traced.before(step, flying and flying[1])
      with watch.spending("data"):
        batch = next(batches)
      if step == 0:
        seen = jax.jit(held.batch)(held.arrays, batch) if held else batch
        _picture(where / PICTURE, procedure, seen, data, sharding.replicated(mesh))
      first = step == start
      stop.where = "compiling" if first else "training"
      with watch.spending("compile") if first else contextlib.nullcontext():
        current, metrics = train_step(current, batch)  # donates `current`
      stop.holds = True
      if flying is not None:
        # One step in flight: the device never waits, and waiting for data is measured honestly.
        jax.block_until_ready(flying[1])
      look()
      flying = (step + 1, metrics)
      saved.check()
      if pending is not None:
        watch.train(*pending)
      step, scored = step + 1, False
      watch.advance()
      pending = (step, metrics) if step % config["log_every"] == 0 else None
    if step > start:
      watch.summary()
  stop.holds = False
  return last


def _check_room(where: Path, abstract: Any) -> None:
  """Raises ValueError where the disk has no room for a single checkpoint."""
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract))
  free = shutil.disk_usage(where).free
  if free < size:
    raise ValueError(
      f"a checkpoint takes about {size / 1e6:,.0f} MB and {where} has {free / 1e6:,.0f} MB free:"
      " make room, or name another place with --workdir"
    )


def _first_state(
  config: Mapping[str, Any],
  where: Path,
  data: experiment.Data,
  procedure: Any,
  abstract: Any,
  saved: checkpoints.Checkpoints,
  taken: initialise.Taken | None,
) -> Any:
  """The state of the step to continue from, or of step 0; refuses what does not belong here."""
  primary = jax.process_index() == 0
  if saved.latest is not None:
    current, found = saved.restore(saved.latest, abstract)
    if found["fingerprint"] != data.fingerprint:
      folders = " and ".join(str(part.build.data_dir) for part in data.sets)
      raise ValueError(
        f"{where} was trained on other data than {folders} holds (fingerprint"
        f" {found['fingerprint'][:12]} against {data.fingerprint[:12]})"
      )
    if primary:
      print(f"       continues from step {saved.latest}", flush=True)
    return current
  # Read here only where checkpoints were there and all of them turned out to be damaged.
  taken = taken or initialise.start(config, abstract)
  first = lambda arrays: initialise.fill(procedure.init(), arrays)
  placed = jax.tree.map(lambda x: x.sharding, abstract)
  # It runs once: where a CPU compiles it, that takes twice as long with all optimisations.
  quick = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
  init = jax.jit(first, out_shardings=placed, compiler_options=quick)
  current = init(taken.arrays if taken else {})
  if taken and primary:
    print(taken.report, flush=True)
  return current


def _saved_state(procedure: Any, abstract: Any, saved: checkpoints.Checkpoints) -> Any:
  """The state of the last checkpoint, or the first state if there is none."""
  saved.wait()
  step = checkpoints.latest_intact(saved.root, repair=False, say=lambda line: None)
  return jax.jit(procedure.init)() if step is None else saved.restore(step, abstract)[0]


def _look(
  flying: tuple[int, Any] | None,
  config: Mapping[str, Any],
  data: experiment.Data,
  procedure: Any,
  before: Callable[[], Any],
  watch: monitor.Monitor,
) -> None:
  """Sees to it that an update was finite: else it is logged, and the run stops if it is to."""
  if not flying or not (values := finite.found(flying[1])):
    return
  watch.write(flying[0], "nonfinite", values)
  state = before() if jax.process_count() == 1 else None
  text = finite.explain(values, flying[0], config, data, procedure, state)
  if finite.choice(config) == "stop":
    raise FloatingPointError(
      f"{text}; nothing was saved since: find the cause, lower config.optimizer.learning_rate in"
      " another --workdir, or go on without such updates by config.nonfinite=skip"
    )
  watch.say(f"skipped: {text}")


def _picture(path: Path, procedure: Any, batch: Any, data: experiment.Data, whole: Any) -> None:
  """Draws what the network sees first, unless that is features of images."""
  if batch["image"].dtype != np.uint8:
    return
  seen = jax.jit(procedure.view, out_shardings=whole)(batch, np.int32(0))
  if jax.process_index() == 0:
    # From all over the batch: its parts differ.
    drawn = np.linspace(0, len(seen[0]) - 1, min(len(seen[0]), DRAWN)).round().astype(int)
    images, labels, mask = jax.tree.map(lambda x: np.asarray(x)[drawn], seen)
    report.save_batch(path, images, labels, mask, data.labels)
