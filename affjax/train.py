"""The main job: data, model, loop, scores. Stop it anywhere; the same command continues to the bit."""

import json
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

from affjax import checkpoints, evaluate, monitor, procedures, report, sharding, state, workdir
from affjax.data import pipeline, prepare, records

PICTURE = "first_batch.png"
SCORES = "scores.json"


class Data:
  """The data sets of a run, opened: training split, splits to choose by and to report.

  Args:
    config: of the run.
    data_dir: where prepared data lives; None: TFDS's default place.
  """

  def __init__(self, config: Mapping[str, Any], data_dir: str | None = None):
    data = config["data"]
    self.labels = config["labels"]
    self.build = records.builder(data["name"], data["config"], data_dir)
    self.summary = prepare.prepare(self.build)
    self.image_size = data["image_size"]
    self.select, self.report = data["select"], tuple(data["report"])
    self.train_split = data["train"]
    for split in (self.train_split, self.select, *self.report):
      records.shards(self.build, split)
    self.scoring = evaluate.Scoring.of(self.labels, records.metadata(self.build))

  def records(self, split: str) -> records.Records:
    """Opens a split in terms of the model's labels."""
    return records.records(self.build, split, self.labels, self.image_size)

  def describe(self) -> str:
    """Counts per split and task; tasks without labels are masked and said to be."""
    config = f" {self.build.builder_config.name}" if self.build.builder_config else ""
    lines = [f"data   {self.build.name}{config} {self.build.version}"]
    for split in dict.fromkeys((self.train_split, self.select, *self.report)):
      counts = self.summary["splits"][split]
      tasks = []
      for task in self.labels:
        labelled = counts.get(task, {}).get("labelled", 0)
        number = max(labelled.values(), default=0) if isinstance(labelled, dict) else labelled
        tasks.append(f"{task} {number:.0f}" if number else f"{task} unlabelled (masked)")
      lines.append(f"       {split}: {counts['images']} images ({', '.join(tasks)})")
    return "\n".join(lines)

  def evaluator(self, split: str, procedure: Any, mesh: Mesh, config: Mapping[str, Any]) -> Any:
    """An `evaluate.Evaluator` of a split."""
    return evaluate.Evaluator(
      procedure.predict,
      self.records(split),
      self.scoring,
      mesh,
      batch_size=config["evaluate"]["batch_size"],
      name=split,
      threads=config["data"]["threads"],
    )


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


def abstract_state(procedure: Any, mesh: Mesh) -> state.TrainState:
  """Shapes, dtypes and shardings of the state; nothing is computed."""
  whole = sharding.replicated(mesh)
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole),
    jax.eval_shape(procedure.init),
  )


def describe(config: Mapping[str, Any], data: Data, procedure: Any, mesh: Mesh) -> str:
  """What the run is: devices, data, parameters, work per image."""
  abstract = jax.eval_shape(procedure.init)
  size = data.image_size
  image = jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)
  cost = jax.jit(procedure.predict).lower(abstract.params, abstract.model_state, image)
  flops = (cost.cost_analysis() or {}).get("flops", float("nan"))
  parameters = state.count(abstract.params["model"])
  kind = jax.devices()[0].device_kind
  axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
  epochs = config["steps"] * config["batch_size"] / len(data.records(data.train_split))
  return "\n".join(
    [
      f"device {jax.device_count()} x {kind} in {jax.process_count()} process(es), mesh {axes}",
      data.describe(),
      f"model  {parameters / 1e6:.2f} M parameters, {flops / 1e9:.3f} GFLOP per image (forward),"
      f" {config['image_size']} px, {procedures.activation_dtype(config['dtype'])} activations",
      f"train  {config['steps']} steps of {config['batch_size']} images = {epochs:.1f} epochs",
    ]
  )


def training_batches(
  config: Mapping[str, Any], data: Data, mesh: Mesh, start: int
) -> Iterator[dict[str, Any]]:
  """Global batches from step `start` on, copied to the devices ahead of the step."""
  split = data.records(data.train_split)
  rows = pipeline.order(len(split), config["seed"], config["batch_size"])
  local = pipeline.batches(
    split,
    rows[start : config["steps"]],
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
  mesh = sharding.make_mesh(**config["mesh"])
  sharding.check_batch(config["batch_size"], mesh, "config.batch_size")
  procedure = procedures.from_config(config)
  data = Data(config, data_dir)
  choose = data.evaluator(data.select, procedure, mesh, config)
  primary = jax.process_index() == 0
  if primary:
    workdir.record(where, config, {"devices": [str(d) for d in jax.devices()]})
    print(f"{describe(config, data, procedure, mesh)}\nrun    {where}", flush=True)
  with Stop() as stop:
    finished = _loop(config, where, data, procedure, mesh, choose, stop)
  if not finished:
    print(f"stopped by signal {stop.signal}; the same command continues", flush=True)
    raise SystemExit(128 + (stop.signal or signal.SIGTERM))
  return score(config, where, data, procedure, mesh)


def _loop(
  config: Mapping[str, Any],
  where: Path,
  data: Data,
  procedure: Any,
  mesh: Mesh,
  choose: evaluate.Evaluator,
  stop: Stop,
) -> bool:
  """The loop; returns whether it reached the last step."""
  primary = jax.process_index() == 0
  whole = sharding.replicated(mesh)
  settings = config["checkpoint"]
  saved = checkpoints.Checkpoints(
    where / workdir.CHECKPOINTS,
    keep_last=settings["keep_last"],
    keep_best=settings["keep_best"],
  )
  position = {"seed": config["seed"], "fingerprint": data.summary["fingerprint"]}
  if saved.latest is None:
    current = jax.jit(procedure.init, out_shardings=whole)()
    start = 0
  else:
    start = saved.latest
    current, found = saved.restore(start, abstract_state(procedure, mesh))
    if found["fingerprint"] != position["fingerprint"]:
      raise ValueError(
        f"{where} was trained on other data than {data.build.data_dir} holds (fingerprint"
        f" {found['fingerprint'][:12]} against {position['fingerprint'][:12]})"
      )
    if primary:
      print(f"       continues from step {start}", flush=True)
  train_step = jax.jit(procedure.train_step, donate_argnums=0, out_shardings=whole)
  batches = training_batches(config, data, mesh, start)
  step, pending, flying = start, None, None
  with monitor.Monitor(
    where, steps=config["steps"], start=start, batch_size=config["batch_size"], primary=primary
  ) as watch:
    while True:
      # Invariant: `current` has seen `step` updates and `batches` has given `step` batches.
      last = step == config["steps"]
      leaving = not last and stop.asked(step)
      evaluates = step > start and (last or step % config["evaluate"]["every"] == 0)
      if evaluates or leaving or last or step % settings["every"] == 0:
        if pending is not None:
          watch.train(*pending)  # before the save: the log must hold what the checkpoint has seen
          pending = None
        with watch.pausing():
          value = None
          if evaluates:
            scores, floors = choose(current.averaged, current.model_state, progress=primary)
            watch.write(step, choose.name, scores)
            watch.say(evaluate.table(scores, floors, f"step {step}, {choose.name}"))
            value = _metric(scores, settings["metric"])
          if step > start:
            saved.save(step, current, position | {"step": step}, value)
      if last or leaving:
        break
      with watch.waiting():
        batch = next(batches)
      if step == 0:
        _picture(where / PICTURE, procedure, batch, data, whole)
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
  saved.close()
  batches.close()
  return last


def _metric(scores: evaluate.Scores, name: str) -> float:
  if name not in scores:
    raise ValueError(f"config.checkpoint.metric={name!r}: the scores are {', '.join(scores)}")
  return scores[name]


def _picture(path: Path, procedure: Any, batch: Any, data: Data, whole: Any) -> None:
  """Draws what the network sees first."""
  images, labels, mask = jax.jit(procedure.view, out_shardings=whole)(batch, np.int32(0))
  if jax.process_index() == 0:
    report.save_batch(path, np.asarray(images), labels, mask, data.labels)


def score(
  config: Mapping[str, Any],
  where: Path,
  data: Data,
  procedure: Any,
  mesh: Mesh,
  *,
  splits: tuple[str, ...] = (),
  which: str = "best",
  weights: str = "ema",
  output: str | None = SCORES,
) -> dict[str, Any]:
  """Scores a checkpoint and prints a table a split.

  Args:
    config: of the run.
    where: the run's folder.
    data: what to score on; need not be the run's own.
    procedure: of the run.
    mesh: devices.
    splits: default: the one that choices are made on and those that are reported.
    which: "best" by the run's metric, "latest", or a step.
    weights: "ema" (the moving average, where one is kept) or "raw".
    output: file in `where`; None: no file.

  Returns:
    {"step", "weights", "data", "scores": {split: scores}, "floors": {split: floors}}.
  """
  root = where / workdir.CHECKPOINTS
  step = pick_step(root, which)
  saved = checkpoints.Checkpoints(root, read_only=True)
  restored, _ = saved.restore(step, abstract_state(procedure, mesh))
  saved.close()
  params = restored.averaged if weights == "ema" else restored.params
  primary = jax.process_index() == 0
  result: dict[str, Any] = {
    "step": step,
    "weights": weights,
    "data": data.build.name,
    "scores": {},
    "floors": {},
  }
  for split in splits or (data.select, *data.report):
    evaluator = data.evaluator(split, procedure, mesh, config)
    scores, floors = evaluator(params, restored.model_state, progress=primary)
    result["scores"][split], result["floors"][split] = scores, floors
    if primary:
      title = f"\n{data.build.name} {split}, step {step} ({which}), {weights} weights"
      print(evaluate.table(scores, floors, title), flush=True)
  if primary and output:
    (where / output).write_text(json.dumps(result, indent=1))
  return result


def pick_step(root: Path, which: str) -> int:
  """Finds a checkpoint: "best", "latest", or a step as text.

  Raises:
    ValueError: there is none like that.
  """
  say = lambda line: print(line, flush=True)
  if which == "best":
    step = checkpoints.best_intact(root, say)
  elif which == "latest":
    step = checkpoints.latest_intact(root, repair=False, say=say)
  elif which.isdigit() and (root / which / checkpoints.MANIFEST).is_file():
    if problem := checkpoints.damage(root / which):
      raise ValueError(f"checkpoint {root / which} refused: {problem}")
    step = int(which)
  else:
    step = None
  if step is None:
    raise ValueError(f"no checkpoint {which!r} in {root}: use best, latest or a step that is there")
  return step
