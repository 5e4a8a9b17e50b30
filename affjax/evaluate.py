"""A split -> scores, beside the floor that no system should fall below and other yardsticks."""

import copy
import dataclasses
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from affjax import (
  checkpoints,
  experiment,
  metrics,
  probe,
  procedures,
  resident,
  sharding,
  workdir,
)
from affjax.data import clips, pipeline, records
from affjax.labels import EXPRESSION_SEVEN, TASKS, remap
from affjax.procedures.self_supervised import RECONSTRUCTION

SCORES = "scores.json"
ROWS = 100_000  # of a split, of which what the model gave is kept, at most

Scores = dict[str, float]
# Of rows of a split: "index", [rows] their numbers, and task -> [rows, size] what the model gave.
Outputs = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Scoring:
  """What is scored on a data set.

  Of a model without outputs it is how well it paints what it does not see of images.

  Attributes:
    labels: task -> names of the model's outputs; {} = it has none.
    scored: task -> those of them that are scored, in that order; {} = all.
    rules: names of the rules under which an image has a hard expression; () where every labelled
      image has one.
  """

  labels: Mapping[str, Sequence[str]]
  scored: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
  rules: tuple[str, ...] = ()

  @classmethod
  def of(cls, labels: Mapping[str, Sequence[str]], described: Mapping[str, Any]) -> "Scoring":
    """From a model's labels and a data set's metadata.

    What the data set does not label at all is not scored: as a class or unit without support it
    would count as 0. Nor are expressions that the data set itself leaves out of its scores.
    """
    expression = described.get("scoring", {}).get("expression", {})
    scored = {}
    for task, names in labels.items():
      there = remap(described["labels"].get(task, ()), names).any(0)
      scored[task] = [name for name, has in zip(names, there, strict=True) if has]
    if "classes" in expression and "expression" in scored:
      scored["expression"] = [c for c in expression["classes"] if c in scored["expression"]]
    return cls(dict(labels), scored, tuple(expression.get("rules", ())))

  def names_of(self, task: str) -> Sequence[str]:
    """Names of the scored outputs of a task."""
    return self.scored.get(task, self.labels.get(task, ()))

  @property
  def left_out(self) -> list[str]:
    """Names of the outputs that are not scored, of tasks that are."""
    return [
      name
      for task, names in self.labels.items()
      for name in names
      if self.names_of(task) and name not in self.names_of(task)
    ]

  @property
  def outputs(self) -> Collection[str]:
    """Names of what the model gives that is scored."""
    return self.labels or (RECONSTRUCTION,)

  @property
  def _hard(self) -> list[str]:
    """Names of the masks of images with a hard label."""
    return [f"expression_{rule}" for rule in self.rules] or ["expression"]

  def _columns(self, task: str) -> np.ndarray:
    """Which outputs of a task are scored."""
    known = list(self.labels[task])
    return np.array([known.index(name) for name in self.names_of(task)], int)

  def states(self, outputs: Mapping[str, jax.Array], batch: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics' states of one global batch; pure, for `jax.jit`."""
    labels, mask = batch["labels"], batch["mask"]
    states: dict[str, Any] = {}
    for task, metric in (("va", metrics.CCC), ("au", metrics.BinaryCounts)):
      if task in outputs and self.names_of(task):
        of = self._columns(task)
        states[task] = metric.from_model_output(
          outputs[task][:, of], labels[task][:, of], mask[task][:, of]
        )
    if "expression" in outputs and self.names_of("expression"):
      args = (outputs["expression"], labels["expression"])
      states["expression_votes"] = metrics.CrossEntropy.from_model_output(*args, mask["expression"])
      for name in self._hard:
        states[name] = metrics.Confusion.from_model_output(
          *args, mask[name], classes=self._columns("expression").tolist()
        )
    if RECONSTRUCTION in outputs:
      errors = outputs[RECONSTRUCTION].swapaxes(0, 1)
      states[RECONSTRUCTION] = metrics.SquaredError.from_model_output(*errors, batch["index"] >= 0)
    return states

  def scores(self, states: Mapping[str, Any], floor: bool = False) -> Scores:
    """Scores (or their floors) of merged host states; tasks without labels are left out.

    Names: `va/ccc`, `va/ccc/valence`, `expression/f1`, `expression/accuracy`,
    `expression/f1/anger`, `expression/cross_entropy`, `au/f1`, `au/f1/AU1`, `p_mtl`; where hard
    labels follow a rule its name comes second: `expression/strict/f1`. Where the seven expressions
    of ABAW1-2 are scored and no other, also their score, `expression/abaw2`. Without labels:
    `reconstruction/mse`, `reconstruction/r2`.
    """
    of = (lambda m: m.floor()) if floor else (lambda m: m.compute())
    out: Scores = {}
    if "va" in states and np.asarray(states["va"].count).sum():
      ccc = np.broadcast_to(of(states["va"]), len(self.names_of("va")))
      out["va/ccc"] = ccc.mean()
      out |= {f"va/ccc/{n}": v for n, v in zip(self.names_of("va"), ccc, strict=True)}
    for name in self._hard:  # in this order: jax sorts the keys of dicts
      if name in states and states[name].counts.sum():
        out |= self._expression(name.replace("_", "/"), of(states[name]))
    votes = states.get("expression_votes")
    if votes is not None and votes.count:
      out["expression/cross_entropy"] = of(votes)
    if "au" in states and sum(np.sum(x) for x in jax.tree.leaves(states["au"])):
      unit = of(states["au"])
      out["au/f1"] = unit["f1"]
      if "f1_per_unit" in unit:
        pairs = zip(self.names_of("au"), unit["f1_per_unit"], strict=True)
        out |= {f"au/f1/{n}": v for n, v in pairs}
    if RECONSTRUCTION in states and states[RECONSTRUCTION].count:
      out |= {f"{RECONSTRUCTION}/{n}": v for n, v in of(states[RECONSTRUCTION]).items()}
    if {"va/ccc", "expression/f1", "au/f1"} <= set(out):
      out["p_mtl"] = out["va/ccc"] + out["expression/f1"] + out["au/f1"]
    return {name: float(value) + 0.0 for name, value in out.items()}  # no negative zeros

  def names(self, labelled: Collection[str]) -> list[str]:
    """The names that `scores` gives where the tasks in `labelled` have labels."""
    known = {task: names for task, names in self.labels.items() if task in labelled}
    outputs = {task: np.zeros((1, len(names)), np.float32) for task, names in known.items()}
    given = outputs if self.labels else {RECONSTRUCTION: np.zeros((1, 2), np.float32)}
    mask = {task: np.ones((1,) if task == "expression" else values.shape)
            for task, values in outputs.items()}  # fmt: skip
    mask |= {name: np.ones(1) for name in self._hard}
    batch = {"labels": outputs, "mask": mask, "index": np.zeros(1, np.int32)}
    shapes = jax.eval_shape(self.states, given, batch)
    return list(self.scores(jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)))

  def _expression(self, name: str, score: Mapping[str, Any]) -> Scores:
    out = {f"{name}/f1": score["f1"], f"{name}/accuracy": score["accuracy"]}
    if set(self.names_of("expression")) == set(EXPRESSION_SEVEN):
      out[f"{name}/abaw2"] = metrics.expression_abaw2(score["f1"], score["accuracy"])
    if "f1_per_class" in score:
      pairs = zip(self.names_of("expression"), score["f1_per_class"], strict=True)
      out |= {f"{name}/f1/{n}": v for n, v in pairs}
    return out


def merge(rows: Mapping[str, Any], into: Mapping[str, Any] | None = None) -> dict[str, Any]:
  """Merges metric states that are stacked along a first axis, in float64.

  Args:
    rows: name -> metric whose arrays are [count, ...].
    into: name -> metric to which they are added; None: nothing yet.
  """
  merged = dict(into or {})
  for name, stacked in metrics.to_host(rows).items():
    for i in range(len(jax.tree.leaves(stacked)[0])):
      state = jax.tree.map(lambda x, i=i: x[i], stacked)
      merged[name] = merged[name].merge(state) if name in merged else state
  return merged


class Evaluator:
  """Scores one split, batch by batch, any number of times.

  Args:
    predict: (params, model_state, images) -> outputs; with clips (params, model_state, images,
      present), without labels (params, model_state, images, index).
    data: the split.
    scoring: what is scored.
    mesh: devices.
    batch_size: of the global batch, images or clips; the last one is padded with masked rows, so
      every size gives the same scores.
    name: shown while it runs.
    windows: [windows, length] rows of the split: what is read are clips. Where they overlap, each
      row is scored once, see `clips.scored`. None: images.
    threads: that read.
    keep: whether batches stay on the devices, so that the split is read once.
  """

  def __init__(
    self,
    predict: Callable[[Any, Any, jax.Array], dict[str, Any]],
    data: records.Records,
    scoring: Scoring,
    mesh: Mesh,
    *,
    batch_size: int,
    name: str,
    windows: np.ndarray | None = None,
    threads: int = 2,
    keep: bool = False,
  ) -> None:
    sharding.check_batch(batch_size, mesh, "config.evaluate.batch_size")
    self.scoring = scoring
    self._mesh = mesh
    self._batch_size = batch_size
    self._threads = threads
    self._open(data, name, windows, keep)
    # Each device gives states of its own rows: scoring needs no collective.
    rows = sharding.split_batch(mesh).spec
    parts = jax.shard_map(
      lambda outputs, batch: jax.tree.map(
        lambda x: x[None], scoring.states(*_frames(outputs, batch))
      ),
      mesh=mesh,
      in_specs=rows,
      out_specs=rows,
      check_vma=False,
    )

    def step(params: Any, model_state: Any, batch: dict[str, Any]) -> Any:
      rows = () if windows is None else (batch["index"] >= 0,)
      rows = rows if scoring.labels else (batch["index"],)
      outputs = predict(params, model_state, batch["image"], *rows)
      scored = {name: values for name, values in outputs.items() if name in scoring.outputs}
      return parts(outputs, batch), scored

    self._step = jax.jit(step, out_shardings=sharding.split_batch(mesh))

  def _open(
    self, data: records.Records, name: str, windows: np.ndarray | None, keep: bool = False
  ) -> None:
    self.name = name
    self._keep, self._kept = keep, []
    self._every = -(-len(data) // ROWS)
    rows = pipeline.sequence(len(data) if windows is None else len(windows), self._batch_size)
    self._scored = None
    if windows is not None:
      once = np.where(clips.scored(windows), windows, -1)
      self._scored = pipeline.of_windows(rows, once)
      rows = pipeline.of_windows(rows, windows)
    self._count = len(rows)
    self._batches: grain.IterDataset = pipeline.batches(
      data,
      rows,
      process=jax.process_index(),
      processes=jax.process_count(),
      threads=self._threads,
    )

  def on(self, data: records.Records, name: str, windows: np.ndarray | None = None) -> "Evaluator":
    """The evaluator of another split of the same data set; what is compiled serves both."""
    other = copy.copy(self)
    other._open(data, name, windows)
    return other

  def __call__(
    self,
    params: Any,
    model_state: Any,
    progress: bool = False,
    rows: Outputs | None = None,
  ) -> tuple[Scores, Scores]:
    """Returns the scores and their floors.

    Args:
      params: of the model.
      model_state: likewise.
      progress: whether a bar is shown.
      rows: filled with what the model gave for at most `ROWS` rows, evenly spaced; of overlapping
        clips it is what is scored.
    """
    merged: dict[str, Any] | None = None
    parts: list[Outputs] = []

    def take(states: Any, outputs: Any, batch: Any) -> None:
      nonlocal merged
      merged = merge(sharding.local_rows(states), merged)
      if rows is not None:
        parts.append(_picked(outputs, batch, self._every))

    batches = self._kept or self._read()
    bar = tqdm(batches, self.name, self._count, leave=False, disable=None if progress else True)
    flying = None
    for batch in bar:
      # The host adds up the numbers of one batch while the devices work on the next.
      given = (*self._step(params, model_state, batch), batch)
      if flying is not None:
        take(*flying)
      flying = given
    take(*flying)
    merged = merge(sharding.all_rows(merged))
    if rows is not None:
      rows |= _gathered(parts)
    return self.scoring.scores(merged), self.scoring.scores(merged, floor=True)

  def _read(self) -> Iterator[Any]:
    """Batches, copied to the devices while these work on the one before."""
    placed = self._batches.map(lambda batch: sharding.global_batch(batch, self._mesh))
    share = pipeline.Share(jax.process_index(), jax.process_count())
    read: list[Any] = []
    ahead = grain.experimental.ThreadPrefetchIterDataset(placed, prefetch_buffer_size=2)
    for number, batch in enumerate(ahead):
      if self._scored is not None:
        own = share(self._scored[number]) >= 0
        batch = batch | {"scored": sharding.global_batch(own, self._mesh)}
      if self._keep:
        read.append(batch)
      yield batch
    self._kept = read


def _picked(outputs: Mapping[str, jax.Array], batch: Mapping[str, Any], every: int) -> Outputs:
  """Of this process's rows of a batch those with numbers 0, `every`, 2 `every`, ..."""
  index, outputs = sharding.local_rows((batch["index"], dict(outputs)))
  picked = (index >= 0) & (index % every == 0)
  if "scored" in batch:
    picked &= sharding.local_rows(batch["scored"])
  return {"index": index[picked], **{task: values[picked] for task, values in outputs.items()}}


def _gathered(parts: Sequence[Outputs]) -> Outputs:
  """The rows of all batches and processes, in the order of their numbers."""
  own = jax.tree.map(lambda *x: np.concatenate(x), *parts)
  longest = sharding.all_rows(np.array(len(own["index"]))).max()
  lacks = longest - len(own["index"])
  fill = lambda x: np.pad(x, [(0, lacks), *[(0, 0)] * (x.ndim - 1)], constant_values=-1)
  every = jax.tree.map(np.concatenate, sharding.all_rows(jax.tree.map(fill, own)))
  order = np.argsort(every["index"], kind="stable")
  order = order[every["index"][order] >= 0]
  return {name: values[order] for name, values in every.items()}


def _frames(outputs: Mapping[str, jax.Array], batch: Mapping[str, Any]) -> tuple[Any, Any]:
  """Outputs, labels and masks of the frames of clips as those of images; images as they are."""
  if "scored" not in batch:
    return outputs, batch
  flat = lambda x: x.reshape(-1, *x.shape[2:])
  labels, scored = jax.tree.map(flat, (batch["labels"], batch["scored"]))
  mask = {
    name: flat(x) * scored.reshape(-1, *[1] * (x.ndim - 2)) for name, x in batch["mask"].items()
  }
  return jax.tree.map(flat, dict(outputs)), {"labels": labels, "mask": mask}


def evaluator(
  config: Mapping[str, Any],
  data: experiment.Data,
  split: str,
  procedure: Any,
  mesh: Mesh,
  *,
  often: bool = False,
) -> Evaluator:
  """The evaluator of one split of a run's data; one that works often may keep it on the devices."""
  opened, windows = data.records(split), data.windows(split)
  rows = 0 if windows is None else windows.size
  return Evaluator(
    procedure.predict,
    opened,
    Scoring.of(data.labels, records.metadata(data.build)),
    mesh,
    batch_size=config["evaluate"]["batch_size"],
    name=split,
    windows=windows,
    threads=config["data"]["threads"],
    keep=often and resident.fits(experiment.wanted_placement(config), opened, mesh, rows),
  )


def check_metric(config: Mapping[str, Any], data: experiment.Data) -> None:
  """Raises ValueError unless checkpoints can be chosen by `config.checkpoint.metric`."""
  scoring = Scoring.of(data.labels, records.metadata(data.build))
  names = scoring.names([task for task in data.labels if data.labelled(data.select, task)])
  if config["checkpoint"]["metric"] not in names:
    raise ValueError(
      f"config.checkpoint.metric={config['checkpoint']['metric']!r}: the scores of"
      f" {data.build.name} {data.select} are {', '.join(names)}"
    )


def ceilings(data: experiment.Data, split: str, scoring: Scoring) -> Scores:
  """The scores of the best possible system, where the data set says them; else nothing.

  Its metadata may hold `ceiling`: split -> name of a score -> value, where no image can say all of
  its label. They are those of exact labels, so there are none under noise (masks are drawn at
  random, and move them by chance alone), and of all of its classes and units, so there are none of
  a task that is scored on others.
  """
  described = records.metadata(data.build)
  if data.view(split).noise != "clean":
    return {}
  same = lambda t: set(scoring.names_of(t)) == set(described["labels"].get(t, ()))
  declared = described.get("ceiling", {}).get(split.removesuffix(experiment.NO_VIEW), {})
  return {
    name: float(value)
    for name, value in declared.items()
    if all(map(same, TASKS if name == "p_mtl" else [name.partition("/")[0]]))
  }


def table(columns: Mapping[str, Scores], title: str) -> str:
  """Scores as text, column by column: the score first, then what to read it by.

  A column may lack any score, and one that is empty is left out. Scores of single labels (of
  `au/f1`: `au/f1/AU1`) stand below in tables of their own, a line for each column.

  Args:
    columns: heading -> scores. The first says which there are, and in which order.
    title: the first line.
  """
  columns = {heading: scores for heading, scores in columns.items() if scores}
  names = list(next(iter(columns.values()), ()))
  single = [n for n in names if n.rpartition("/")[0] in names]
  main = [n for n in names if n not in single]
  number = lambda scores, name, width, digits: (
    f"{scores[name]:{width}.{digits}f}" if name in scores else f"{'-':>{width}}"
  )
  left = max(map(len, [*main, *(f"  {heading}" for heading in columns)]), default=0)
  lines = [title, f"  {'':{left}}" + "".join(f"{heading:>9}" for heading in columns)]
  for name in main:
    lines.append(f"  {name:{left}}" + "".join(number(c, name, 9, 3) for c in columns.values()))
  for kind in dict.fromkeys(n.rpartition("/")[0] for n in single):
    parts = {n: n.rpartition("/")[2] for n in single if n.rpartition("/")[0] == kind}
    widths = {n: max(len(label), 4) + 2 for n, label in parts.items()}
    lines.append(f"  {kind:{left}}" + "".join(f"{parts[n]:>{widths[n]}}" for n in parts))
    for heading, scores in columns.items():
      if any(n in scores for n in parts):
        values = "".join(number(scores, n, widths[n], 2) for n in parts)
        lines.append(f"    {heading:{left - 2}}{values}")
  return "\n".join(lines)


def run(
  config: Mapping[str, Any],
  where: Path,
  data_dir: str | None = None,
  *,
  data_set: str = "",
  splits: tuple[str, ...] = (),
  which: str = "best",
  weights: str = "ema",
) -> dict[str, Any]:
  """Scores a checkpoint of a run on the run's own data or on another set.

  Args:
    config: of the run.
    where: the run's folder.
    data_dir: where prepared data lives.
    data_set: NAME or NAME/CONFIG of another data set; empty: the run's own.
    splits: default: those of the config, or of another data set `validation`.
    which: see `score`.
    weights: see `score`.
  """
  config = {**config, "data": dict(config["data"]), "evaluate": dict(config["evaluate"])}
  if data_set:
    name, _, builder_config = data_set.partition("/")
    splits = splits or ("validation",)
    config["data"] |= dict(
      name=name,
      config=builder_config,
      train=splits[0],
      select=splits[0],
      report=splits[1:],
      view={},
    )
    config["evaluate"]["probe"] = False  # it learns from the split that the run has learnt from
  mesh, _ = experiment.open_mesh(config)
  procedure = procedures.from_config(config)
  data = experiment.Data(config, data_dir)
  return score(
    config,
    where,
    data,
    procedure,
    mesh,
    splits=splits,
    which=which,
    weights=weights,
    output=None,
  )


def score(
  config: Mapping[str, Any],
  where: Path,
  data: experiment.Data,
  procedure: Any,
  mesh: Mesh,
  *,
  splits: tuple[str, ...] = (),
  which: str = "best",
  weights: str = "ema",
  output: str | None = SCORES,
  facts: Mapping[str, Any] = MappingProxyType({}),
  rows: dict[str, Outputs] | None = None,
) -> dict[str, Any]:
  """Scores a checkpoint and prints a table a split.

  A split that the run reads through a view is scored twice: as chosen by, and, under its name with
  `/no_view`, with every label and each as it is.

  Args:
    config: of the run.
    where: the run's folder.
    data: what to score on; need not be the run's own.
    procedure: of the run.
    mesh: devices.
    splits: default: the one that choices are made on and those that are reported.
    which: "best" by the run's metric, "latest", or a step.
    weights: "ema" (the moving average; where none is kept, "raw") or "raw".
    output: file in `where`; None: no file.
    facts: further entries of what is returned and written.
    rows: filled with what the model gave, split -> `Outputs`, see `Evaluator`.

  Returns:
    {"step", "weights", "data", "scores": {split: scores}, "floors": {split: floors}}, and where
    there are any "ceilings" and (in the first process) "probes", likewise, and "unreadable":
    {split: records that were skipped}.
  """
  root = where / workdir.CHECKPOINTS
  step = checkpoints.pick(root, which)
  saved = checkpoints.Checkpoints(root, read_only=True)
  _, rules = experiment.open_mesh(config)
  restored, _ = saved.restore(step, experiment.abstract_state(procedure, mesh, rules))
  saved.close()
  weights = "raw" if restored.ema is None else weights
  params = restored.averaged if weights == "ema" else restored.params
  primary = jax.process_index() == 0
  names = list(dict.fromkeys(data.with_no_view(splits or (data.select, *data.report))))
  evaluates = evaluator(config, data, names[0], procedure, mesh)
  scoring = evaluates.scoring
  probes: Mapping[str, Scores] = {}
  if primary and config["evaluate"].get("probe", True):  # absent from the configs of earlier runs
    probes = probe.scores(data, scoring, names)
  result: dict[str, Any] = {"step": step, "weights": weights, "data": data.build.name, **facts}
  for name in names:
    evaluates = evaluates.on(data.records(name), name, data.windows(name))
    kept = None if rows is None else rows.setdefault(name, {})
    scores, floors = evaluates(params, restored.model_state, progress=primary, rows=kept)
    columns = {"score": scores, "floor": floors, "ceiling": ceilings(data, name, scoring)}
    columns["probe"] = probes.get(name, {})
    for heading, values in columns.items():
      if values or heading in ("score", "floor"):
        result.setdefault(f"{heading}s", {})[name] = values
    if primary:
      view = data.view(name)
      seen = f" ({view})" if view or name.endswith(experiment.NO_VIEW) else ""
      title = f"\n{data.build.name} {name}{seen}, step {step} ({which}), {weights} weights"
      if scoring.left_out:
        title += f"; not in this data set, so not scored: {', '.join(scoring.left_out)}"
      print(table(columns, title), flush=True)
  if data.skipped:
    result["unreadable"] = data.skipped
  if primary:
    for name, lost in data.skipped.items():
      print(
        f"{lost['count']} of {lost['of']} records of {name} could not be read and were skipped, the"
        f" first of them: {lost['first'][0]}"
      )
    if output:
      workdir.write(where / output, json.dumps(result, indent=1))
  return result
