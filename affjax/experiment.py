"""A config, opened: its data sets, the shapes of its state, what it says of itself."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from affjax import cost, optim, paths, procedures, resident, sharding, state
from affjax.build import bind, find
from affjax.data import (
  clips,
  features,
  packed,
  paired,
  pipeline,
  prepare,
  records,
  selection,
  views,
)

SAMPLING = ("uniform", "class_balanced", "per_task")
UNREADABLE = ("error", "skip")
# After the name of a split: its labels as they are, where the config has it read through a view.
NO_VIEW = "/no_view"
# A unit on in fewer than one of 21 entries is weighed as if it were on in that many: one batch has
# too few of a rarer one, and the loss would be theirs alone.
POSITIVE_WEIGHT_LIMIT = 20.0


class Data:
  """The data sets of a run, opened: training split, splits to choose by and to report.

  The training split and the one that choices are made on are read through `config.data.view`; a
  split that is reported is never, nor is one whose name is followed by NO_VIEW. An auxiliary data
  set is trained on beside the first one, through no view, and is nothing else.

  Args:
    config: of the run.
    data_dir: where prepared data lives; None: TFDS's default place.

  Attributes:
    clips: how splits are cut into windows; false where they are read image by image.
  """

  def __init__(self, config: Mapping[str, Any], data_dir: str | None = None) -> None:
    data = config["data"]
    self.sampling = data.get("sampling", "uniform")  # absent from the configs of earlier runs
    if self.sampling not in SAMPLING:
      raise ValueError(f"config.data.sampling={self.sampling!r}: use one of {', '.join(SAMPLING)}")
    self._unreadable = data.get("unreadable", "error")  # likewise
    if self._unreadable not in UNREADABLE:
      raise ValueError(
        f"config.data.unreadable={self._unreadable!r}: use one of {', '.join(UNREADABLE)}"
      )
    self._skipped: dict[str, records.Skipped] = {}
    self._view = data.get("view") or {}  # likewise
    views.View(**self._view)  # what it refuses is said before any data is made
    self._paired = paired.Auxiliary.of(config)  # likewise
    self._config, self._data_dir = config, data_dir
    self.clips = clips.Clips.of(config)
    self.labels = config["labels"]
    self.build = records.builder(data["name"], data["config"], data_dir)
    self.summary = prepare.prepare(self.build)
    self.image_size = data["image_size"]
    self._records = data.get("records", "auto")  # likewise
    self.select, self.report = data["select"], tuple(data["report"])
    self.train_split = data["train"]
    self._opened: dict[str, _Opened] = {}
    folder = data.get("features")  # likewise
    self._features = Path(folder).expanduser() if folder else None
    for split in (self.train_split, self.select, *self.report):
      if self._features:
        width = self._vectors(selection.Selection.parse(split)).width
        if width != (expected := config["model"]["encoder"].get("width")):
          raise ValueError(
            f"config.data.features={folder}: vectors of {width} numbers,"
            f" config.model.encoder.width={expected}: use {width}"
          )
        continue
      for found in self._shards(selection.Selection.parse(split), self.image_size):
        if self._unreadable == "error":
          found.check()

  def view(self, split: str) -> views.View:
    """What a split is read through."""
    role = {self.select: "validation", self.train_split: "train"}.get(split)
    return views.View(**self._view, role=role) if role else views.CLEAN

  def with_no_view(self, splits: Iterable[str]) -> list[str]:
    """The splits, each that has a view followed by itself without one."""
    return [name for s in splits for name in ([s, s + NO_VIEW] if self.view(s) else [s])]

  def _open(self, name: str) -> "_Opened":
    """A split, or what a name of `affjax.data.selection` stands for; read once."""
    if name not in self._opened:
      chosen, view = selection.Selection.parse(name.removesuffix(NO_VIEW)), self.view(name)
      seen = [records.labels(self.build, split, self.labels, view) for split in chosen.splits]
      seen, taken = jax.tree.map(lambda *parts: np.concatenate(parts), *seen), None
      tables = [records.label_table(self.build, split) for split in chosen.splits]
      table = selection.concatenated(
        [{n: t[n] for n in ("key", *records.PLACES) if n in t} for t in tables]
      )
      if chosen.steps:
        any_label = [mask.reshape(len(mask), -1).any(1) for mask in seen[1].values()]
        taken = chosen.rows(table, np.any([np.zeros(len(table["key"]), bool), *any_label], 0))
        seen, table = jax.tree.map(lambda column: column[taken], (seen, table))
      self._opened[name] = _Opened(seen, table, taken)
    return self._opened[name]

  def seen(self, split: str) -> records.Labels:
    """Labels and masks of a split through its view, see `records.labels`; read once."""
    return self._open(split).seen

  def table(self, split: str) -> dict[str, np.ndarray]:
    """`key`, and where the data set has them `person`, `video`, `frame` of a split's rows."""
    return self._open(split).table

  def windows(self, split: str) -> np.ndarray | None:
    """[windows, length] rows of a split, see `affjax.data.clips`; None: images, one by one.

    Raises:
      ValueError: the data set does not say which frame of whom each row is.
    """
    if not self.clips:
      return None
    opened = self._open(split)
    if opened.windows is None:
      table, nobody = opened.table, np.zeros(len(opened.table["key"]), "S1")
      no_frame = np.full(len(nobody), -1)
      columns = [table.get("video", nobody), table.get("person", nobody)]
      try:
        opened.windows = self.clips.windows(*columns, table.get("frame", no_frame))
      except ValueError as e:
        raise ValueError(f"{self.build.name} {split}: {e}") from e
    return opened.windows

  def _shards(self, chosen: selection.Selection, size: int) -> list[records.Shards]:
    """The files of each of the splits, of one kind."""
    found = [packed.shards(self.build, split, self._records, size) for split in chosen.splits]
    if len({type(shards) for shards in found}) > 1:
      found = [records.shards(self.build, split) for split in chosen.splits]
    return found

  @functools.cached_property
  def auxiliary(self) -> "Data | None":
    """The second data set, see `affjax.data.paired`; opened, and prepared, where it is asked for.

    Raises:
      ValueError: it cannot be opened, or has no label that the config has.
    """
    if not self._paired:
      return None
    section = self._paired.section(self._config["data"])
    found = Data({**self._config, "data": section}, self._data_dir)
    if self.labels and not any(mask.any() for mask in found.targets[1].values()):
      raise ValueError(
        f"config.data.auxiliary: {found.name} {found.train_split} has no label of"
        f" {', '.join(self.labels)} and would teach nothing: use another data set or split"
      )
    return found

  @property
  def sets(self) -> "list[Data]":
    """What is trained on: this data set and, where there is one, the auxiliary one."""
    return [self, self.auxiliary] if self.auxiliary else [self]

  @property
  def name(self) -> str:
    """Of the data set and its config."""
    config = self.build.builder_config
    return f"{self.build.name} {config.name}" if config else self.build.name

  @property
  def fingerprint(self) -> str:
    """Of all that is trained on."""
    found = [data.summary["fingerprint"] for data in self.sets]
    return found[0] if len(found) == 1 else hashlib.sha256("/".join(found).encode()).hexdigest()

  @functools.cached_property
  def training(self) -> records.Records:
    """What is trained on: the training split and, after it, that of the auxiliary set."""
    first, *others = [data.records(data.train_split) for data in self.sets]
    if not others:
      return first
    name, skipped = f"{self.train_split} and {self.auxiliary.name}", None
    if self._unreadable == "skip":
      length = sum(map(len, (first, *others)))
      skipped = self._skipped.setdefault(name, records.Skipped(name, length))
    return records.one_after_other((first, *others), self.labels, skipped)

  @property
  def targets(self) -> records.Labels:
    """Labels and masks of all that is trained on, as training sees them."""
    return self.training.seen

  @property
  def keys(self) -> list[str]:
    """Of the rows of `training`; those of the auxiliary set after its name."""
    return [
      key.decode() if data is self else f"{data.name}: {key.decode()}"
      for data in self.sets
      for key in data.table(data.train_split)["key"].tolist()
    ]

  def parts(self, batch_size: int) -> list[pipeline.Part]:
    """What every global batch is made of, see `pipeline.in_parts`; rows are those of `training`.

    Raises:
      ValueError: sampling needs labels that there are not, or another size.
    """
    if (windows := self.windows(self.train_split)) is not None:
      return [pipeline.Part(windows, batch_size)]
    beside, first = self._paired.rows(batch_size), len(self.table(self.train_split)["key"])
    if self.sampling == "per_task":
      parts = self._of_tasks(batch_size - beside, beside)
    else:
      parts = [pipeline.Part(range(first), batch_size - beside, strata=self.strata)]
    if self.auxiliary:
      parts.append(pipeline.Part(range(first, len(self.training)), beside))
    return parts

  def _of_tasks(self, size: int, beside: int) -> list[pipeline.Part]:
    """Equal parts, each of the rows that a task is labelled in, to teach that task."""
    masks = self.seen(self.train_split)[1]
    of_any = lambda mask: np.flatnonzero(mask.reshape(len(mask), -1).any(1))
    rows = {task: of_any(masks[task]) for task in sorted(self.labels) if task in masks}
    rows = {task: found for task, found in rows.items() if len(found)}
    where = f"{self.build.name} {self.train_split}"
    if not rows:
      where = where if self.labels else "config.labels"
      raise ValueError(f"config.data.sampling='per_task' needs labels, and {where} has none")
    if size % len(rows):
      less = f" less {beside} of config.data.auxiliary" if beside else ""
      raise ValueError(
        f"config.batch_size={size + beside}{less} is not a multiple of the {len(rows)} tasks that"
        f" are labelled in {where} ({', '.join(rows)}), as config.data.sampling='per_task' needs"
      )
    return [pipeline.Part(found, size // len(rows), task) for task, found in rows.items()]

  def _vectors(self, chosen: selection.Selection) -> features.Features:
    """What is read in place of images."""
    return features.find(self._features, self.build, self.summary["fingerprint"], chosen.splits)

  def records(self, split: str, image_size: int | None = None) -> records.Records:
    """Opens a split in terms of the model's labels.

    Args:
      split: or what `affjax.data.selection` reads, perhaps with NO_VIEW after it.
      image_size: of images; None: the config's, or what the config has in place of images.
    """
    name, size = split.removesuffix(NO_VIEW), image_size or self.image_size
    opened, chosen = self._open(split), selection.Selection.parse(name)
    if self._features and not image_size:
      images: Any = dataclasses.replace(self._vectors(chosen), taken=opened.taken)
    else:
      found = records.joined(self._shards(chosen, size))
      images = records.Images(found, (size, size), opened.taken)
    skipped = None
    if self._unreadable == "skip":
      skipped = self._skipped.setdefault(name, records.Skipped(name, len(images)))
    return records.records(self.build, name, self.labels, size, opened.seen, images, skipped)

  @property
  def skipped(self) -> dict[str, dict[str, Any]]:
    """Split -> what of it this process has skipped so far, see `records.Skipped.facts`."""
    return {split: skipped.facts() for split, skipped in self._skipped.items() if skipped}

  def labelled(self, split: str, task: str) -> int:
    """How many images of a split have labels of a task."""
    whole = selection.Selection.parse(split.removesuffix(NO_VIEW)).whole
    if self.view(split) or not whole:
      mask = self.seen(split)[1].get(task, np.zeros((1, 1)))
      return int(mask.reshape(len(mask), -1).any(1).sum())
    count = self.summary["splits"][split.removesuffix(NO_VIEW)].get(task, {}).get("labelled", 0)
    return int(max(count.values(), default=0) if isinstance(count, dict) else count)

  @property
  def strata(self) -> np.ndarray | None:
    """What sampling balances: [rows] most probable expression, -1 = unlabelled; None: nothing.

    Raises:
      ValueError: no row of the training split has one.
    """
    if self.sampling != "class_balanced":
      return None
    labels, mask = self.seen(self.train_split)
    if not mask.get("expression", np.zeros(1)).any():
      raise ValueError(
        "config.data.sampling='class_balanced' needs labels, and"
        f" {self.build.name} {self.train_split} has none of expression"
      )
    return np.where(mask["expression"] > 0, labels["expression"].argmax(1), -1)

  def require(self, task: str, what: str) -> None:
    """Raises ValueError, naming what needs them, unless the training split has labels of a task."""
    if not self.targets[1].get(task, np.zeros(1)).any():
      raise ValueError(
        f"{what} needs labels, and {self.build.name} {self.train_split} has none of {task}"
      )

  def describe(self) -> str:
    """Counts per split and task as seen; tasks without labels are masked and said to be."""
    lines = [f"data   {self.name} {self.build.version}"]
    for split in dict.fromkeys((self.train_split, self.select, *self.report)):
      lines.append(self._counted(split))
      if split in (self.select, *self.report) and (learnt := self._learnt(split)):
        lines.append(f"       warning: {learnt} of them are trained on, so its scores are too high")
    for data in self.sets[1:]:
      lines += [f"beside {data.name} {data.build.version}", data._counted(data.train_split)]
    return "\n".join(lines)

  def _counted(self, split: str) -> str:
    """A line of the numbers of a split."""
    numbers = {task: self.labelled(split, task) for task in self.labels}
    tasks = [f"{t} {n}" if n else f"{t} unlabelled (masked)" for t, n in numbers.items()]
    tasks = tasks or ["no labels are read"]
    view = f", {self.view(split)}" if self.view(split) else ""
    return f"       {split}: {len(self.table(split)['key'])} images ({', '.join(tasks)}){view}"

  def _learnt(self, split: str) -> int:
    """How many images of a split are trained on, too."""
    keys, own = self.table(split)["key"], set(selection.Selection.parse(split).splits)
    learnt = np.zeros(len(keys), bool)
    for data in (d for d in self.sets if d.build.data_dir == self.build.data_dir):
      if own & set(selection.Selection.parse(data.train_split).splits):
        learnt |= np.isin(keys, data.table(data.train_split)["key"])
    return int(learnt.sum())


@dataclasses.dataclass
class _Opened:
  """A split: its labels as they are seen, who its rows are of, and which rows of its files."""

  seen: records.Labels
  table: dict[str, np.ndarray]
  taken: np.ndarray | None
  windows: np.ndarray | None = None  # once they are wanted


def resolve(config: Mapping[str, Any], data: Data | None) -> dict[str, Any]:
  """The config with numbers in place of all that it asks of the training split's labels.

  Raises:
    ValueError: see `resolve_losses` and `resolve_decoder`.
  """
  return resolve_decoder(resolve_losses(config, data), data)


def resolve_decoder(config: Mapping[str, Any], data: Data | None) -> dict[str, Any]:
  """The config with what its decoder asks of the training split's labels.

  A decoder asks by a function `resolved` of its class: see `graphs.LabelGraph`. Without data there
  are no labels.

  Raises:
    ValueError: there is no such decoder, or it refuses its options.
  """
  section = config["model"].get("decoder")
  resolved = getattr(find(section, "affjax.models"), "resolved", None) if section else None
  if resolved is None:
    return dict(config)
  outputs = {task: len(names) for task, names in config["labels"].items()}
  section = resolved(section, *(data.targets if data else ({}, {})), outputs)
  return {**config, "model": {**config["model"], "decoder": section}}


def resolve_losses(config: Mapping[str, Any], data: Data | None) -> dict[str, Any]:
  """The config with numbers where its losses ask for what the training split's labels say.

  Without data they are those of labels in equal shares.

  In terms of the model's labels, over the labelled rows:
  - `class_weights="balanced"`: rows / (classes that occur * rows of the class), so that the mean
    over the rows is 1; 0 for a class that does not occur.
  - `logit_adjustment="prior"`: the share of each class.
  - `positive_weight="balanced"`: negatives / positives of each unit, at most
    POSITIVE_WEIGHT_LIMIT; 1 where either is missing.
  - `unit_weights="inverse"`: in inverse proportion to how often each unit is on, with mean 1; 1 for
    a unit that never is.
  A soft label counts in parts. Every loss is then tried on the shape of its task.

  Raises:
    ValueError: the task has no labels in the training split, or a loss refuses its options.
  """
  sections = {task: dict(section) for task, section in config["losses"].items()}
  for task, section in sections.items():
    size = len(config["labels"][task])
    for option, (name, from_counts) in _FROM_COUNTS.items():
      if isinstance(section.get(option), str) and section[option] != name:
        raise ValueError(
          f"config.losses.{task}.{option}={section[option]!r}: use {name!r}, or a number for each"
          f" of {', '.join(config['labels'][task])}"
        )
      if section.get(option) == name:
        counts = _counts(data, task, f"{option}={name!r}") if data else np.ones((2, size))
        section[option] = from_counts(*counts).tolist()
    shapes = [jax.ShapeDtypeStruct((1, size), np.float32)] * 2
    shapes.append(jax.ShapeDtypeStruct((1,) if task == "expression" else (1, size), np.float32))
    try:
      jax.eval_shape(bind(section, "affjax.losses", 3), *shapes)
    except ValueError as e:
      raise ValueError(f"config.losses.{task}: {e}") from e
  return {**config, "losses": sections}


def _counts(data: Data, task: str, option: str) -> tuple[np.ndarray, np.ndarray]:
  """Positive and negative labels of each class or unit in the training split, in float64."""
  data.require(task, f"config.losses.{task}: {option}")
  label, mask = (part[task].astype(np.float64) for part in data.targets)
  mask = mask.reshape(len(label), -1)
  return (label * mask).sum(0), ((1 - label) * mask).sum(0)


def _class_weights(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
  occurs = positive > 0
  return np.where(occurs, positive.sum() / occurs.sum() / np.where(occurs, positive, 1), 0)


def _prior(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
  return positive / positive.sum()


def _positive_weight(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
  both = (positive > 0) & (negative > 0)
  ratio = np.where(both, negative, 1) / np.where(both, positive, 1)
  return np.minimum(ratio, POSITIVE_WEIGHT_LIMIT)


def _inverse_frequency(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
  on = positive > 0
  inverse = np.where(on, (positive + negative) / np.where(on, positive, 1), 0)
  return np.where(on, on.sum() * inverse / np.maximum(inverse.sum(), 1), 1)


# Option of a loss -> what it is called in a config, and the numbers that this stands for.
_FROM_COUNTS = {
  "class_weights": ("balanced", _class_weights),
  "logit_adjustment": ("prior", _prior),
  "positive_weight": ("balanced", _positive_weight),
  "unit_weights": ("inverse", _inverse_frequency),
}


def open_mesh(
  config: Mapping[str, Any], devices: Sequence[jax.Device] | None = None
) -> tuple[Mesh, sharding.Rules]:
  """The mesh of a config over the devices (None: all), and the rules of where its state lives."""
  sizes = dict(config["mesh"])
  rules = sizes.pop("rules", "replicated")  # absent from the configs of earlier runs
  mesh = sharding.make_mesh(**sizes, devices=devices)
  return mesh, sharding.parse(rules, mesh)


def abstract_state(procedure: Any, mesh: Mesh, rules: sharding.Rules = ()) -> state.TrainState:
  """Shapes, dtypes and shardings of the state; nothing is computed.

  Raises:
    ValueError: the rules do not fit the parameters.
  """
  shapes = jax.eval_shape(procedure.init)
  return jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
    shapes,
    sharding.shardings(shapes, paths.named(shapes.params), rules, mesh),
  )


def placement(config: Mapping[str, Any], data: Data, mesh: Mesh) -> resident.Plan:
  """Where the training split lives: see `config.data.placement`.

  Raises:
    ValueError: no such placement, or it does not fit.
  """
  return resident.plan(wanted_placement(config), data.training, mesh)


def order(config: Mapping[str, Any], data: Data) -> grain.MapDataset:
  """Step -> rows of `data.training` in its global batch: [batch], of clips [batch, length]."""
  return pipeline.in_parts(data.parts(config["batch_size"]), config["seed"])


def taught(config: Mapping[str, Any], data: Data) -> pipeline.Taught:
  """What the places of a global batch teach."""
  return pipeline.taught_by(data.parts(config["batch_size"]), config["labels"])


def wanted_placement(config: Mapping[str, Any]) -> str:
  """`config.data.placement`, which the configs of earlier runs lack."""
  return config["data"].get("placement", "stream")


def hold(
  config: Mapping[str, Any], data: Data, mesh: Mesh, plan: resident.Plan
) -> resident.Resident | None:
  """What is trained on, on the devices; None if it is streamed."""
  if plan.where == "stream":
    return None
  return resident.Resident(
    data.training,
    mesh,
    spread=plan.where == "spread",
    threads=config["data"]["threads"],
    progress=jax.process_index() == 0,
    taught=taught(config, data),
  )


# Parameters that are split over the devices are gathered whole. Left to itself the compiler takes
# products with the parts as they go round, in hundreds of messages: for a ViT-S at 224 px three
# quarters more cycles (`scripts/benchmark_tpu.py`).
_TPU_OPTIONS = {
  "xla_tpu_enable_windowed_einsum_for_all_gather": "false",
  "xla_tpu_enable_windowed_einsum_for_reduce_scatter": "false",
}


def train_step(
  procedure: Any,
  abstract: state.TrainState,
  mesh: Mesh,
  held: resident.Resident | None = None,
  skips: bool = False,
) -> Any:
  """The procedure's step, jitted: takes and gives a state that lives where `abstract` says.

  The state is donated. Metrics come whole on every device. Of a split that the devices hold, it
  takes the rows of a batch. Where it `skips`, and loss or gradient are not finite, nothing but the
  number of the step changes.
  """
  placed = jax.tree.map(lambda x: x.sharding, abstract)
  options = dict(donate_argnums=0, out_shardings=(placed, sharding.replicated(mesh)))
  if mesh.devices.flat[0].platform == "tpu":
    options["compiler_options"] = _TPU_OPTIONS
  inputs = (placed, sharding.split_batch(mesh))
  taken = procedure.train_step
  if skips:
    taken = lambda state, batch: _if_finite(state, *procedure.train_step(state, batch))
  if held is None:
    return jax.jit(taken, in_shardings=inputs, **options)
  step = jax.jit(
    lambda state, rows, arrays: taken(state, held.batch(arrays, rows)),
    in_shardings=(*inputs, jax.tree.map(lambda x: x.sharding, held.arrays)),
    **options,
  )
  return lambda state, rows: step(state, rows, held.arrays)


def _if_finite(
  before: state.TrainState, after: state.TrainState, metrics: Mapping[str, jax.Array]
) -> tuple[state.TrainState, Mapping[str, jax.Array]]:
  finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["gradient_norm"])
  kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, before)
  return kept.replace(step=after.step), metrics


def batch_shapes(config: Mapping[str, Any]) -> Any:
  """The shapes of a training batch, from the config alone: see `affjax.data.records`."""
  cut = clips.Clips.of(config)
  rows = (config["batch_size"], *[cut.length] * bool(cut))
  sizes = {task: len(names) for task, names in config["labels"].items()}
  number = lambda *shape: jax.ShapeDtypeStruct((*rows, *shape), np.float32)
  return {
    "image": _image_shapes(config, *rows),
    "labels": {task: number(size) for task, size in sizes.items()},
    "mask": {t: number() if t == "expression" else number(size) for t, size in sizes.items()},
    "index": jax.ShapeDtypeStruct(rows, np.int32),
  }


def _image_shapes(config: Mapping[str, Any], *rows: int) -> jax.ShapeDtypeStruct:
  """The shape of images, or of what the config has in place of them."""
  if _takes_vectors(config):
    return jax.ShapeDtypeStruct((*rows, config["model"]["encoder"]["width"]), np.float32)
  pixels = config["data"]["image_size"]
  return jax.ShapeDtypeStruct((*rows, pixels, pixels, 3), np.uint8)


def _takes_vectors(config: Mapping[str, Any]) -> bool:
  """Whether the model takes vectors in place of images."""
  return config["model"].get("encoder", {}).get("name") == "features.Precomputed"


def step_flops(config: Mapping[str, Any]) -> float:
  """Floating-point operations of a training step, for MFU: what is computed twice counts once.

  That is what rematerialisation and accumulation do again; SAM's second gradient is no repetition.
  """
  config = resolve(config, None)
  model = dict(config["model"])
  if "remat" in model.get("encoder", {}):
    model["encoder"] = {**model["encoder"], "remat": False}
  procedure = procedures.from_config({**config, "model": model, "accumulate": 1})
  state = jax.eval_shape(procedure.init)
  return cost.flops(procedure.train_step, state, batch_shapes(config))


def describe(config: Mapping[str, Any], data: Data | None, procedure: Any, mesh: Mesh) -> str:
  """What the run is: devices, data (where there are), parameters, work per image."""
  abstract = jax.eval_shape(procedure.init)
  cut = clips.Clips.of(config)
  inputs = [_image_shapes(config, 1)]
  if cut:  # a clip, of which an image is a part
    inputs = [_image_shapes(config, 1, cut.length), jax.ShapeDtypeStruct((1, cut.length), bool)]
  flops = cost.flops(procedure.predict, abstract.params, abstract.model_state, *inputs)
  flops /= cut.length or 1
  parameters = state.count(abstract.params["model"])
  devices = list(mesh.devices.flat)
  processes = len({device.process_index for device in devices})
  axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
  rules = config["mesh"].get("rules", "replicated")
  batches = f"{config['batch_size']} " + (f"clips of {cut.length} frames" if cut else "images")
  return "\n".join(
    [
      f"device {len(devices)} x {devices[0].device_kind} in {processes} process(es), mesh {axes}"
      + (f", state {rules}" if rules != "replicated" else ""),
      *([data.describe()] if data else []),
      f"model  {parameters / 1e6:.2f} M parameters, {flops / 1e9:.3f} GFLOP per image (forward),"
      f" {config['image_size']} px, {procedures.activation_dtype(config['dtype'])} activations",
      *_describe_losses(config),
      *_describe_graph(config),
      f"train  {config['steps']} steps of {batches} {_describe_batches(config, data)}".rstrip(),
      *(f"learns {line}" for line in optim.describe(abstract.params, config)),
    ]
  )


def _describe_batches(config: Mapping[str, Any], data: Data | None) -> str:
  """How often what is trained on is seen, and what a batch is made of."""
  batch_size, sampling = config["batch_size"], config["data"].get("sampling")
  beside = paired.Auxiliary.of(config).rows(batch_size)
  epochs = lambda rows, of: f"= {config['steps'] * rows / len(of):.1f} epochs"
  said = []
  if data:
    windows = data.windows(data.train_split)
    seen = data.records(data.train_split) if windows is None else windows
    said.append(epochs(batch_size - beside, seen))
  parts = config.get("accumulate", 1)
  said += [f"in {parts} micro-batches"] * (parts > 1)
  said += ["classes in equal shares"] * (sampling == "class_balanced")
  if sampling == "per_task":
    tasks = [part.task for part in data.parts(batch_size) if part.task] if data else []
    said.append(f"equal parts for {', '.join(tasks) or 'each task'}")
  if beside:
    of_them = epochs(beside, data.auxiliary.training) if data else ""
    said.append(f"{beside} of them of {config['data']['auxiliary']['name']} {of_them}".rstrip())
  return ", ".join(said)


def _describe_losses(config: Mapping[str, Any]) -> list[str]:
  """A line for each option that has a number for each label."""
  return [
    f"loss   {task} {option}: "
    + "  ".join(f"{n} {x:.3g}" for n, x in zip(config["labels"][task], values, strict=True))
    for task, section in config["losses"].items()
    for option, values in section.items()
    if option in _FROM_COUNTS and values is not None
  ]


def _describe_graph(config: Mapping[str, Any]) -> list[str]:
  """A line of which labels know each other."""
  adjacency = config["model"].get("decoder", {}).get("adjacency")
  if adjacency is None:
    return []
  names = [name for task in sorted(config["labels"]) for name in config["labels"][task]]
  near = (np.array(adjacency) != 0) & ~np.eye(len(names), dtype=bool)
  alone = ", ".join(name for name, any_near in zip(names, near.any(1), strict=True) if not any_near)
  return [
    f"graph  {len(names)} labels, {near.sum() // 2} pairs; without a neighbour: {alone or '-'}"
  ]


def open_training(
  config: Mapping[str, Any], data_dir: str | None = None
) -> tuple[dict[str, Any], Data, Any, Mesh]:
  """Opens everything that training needs; compiles nothing.

  Returns:
    The config, resolved, the data, the procedure and the mesh.

  Raises:
    ValueError: the config or the data do not fit.
  """
  mesh = check_config(config)
  data = Data(config, data_dir)
  order(config, data)  # what it refuses is said before anything is compiled
  resolved = resolve(config, data)
  return resolved, data, procedures.from_config(resolved), mesh


def check_config(config: Mapping[str, Any], devices: Sequence[jax.Device] | None = None) -> Mesh:
  """What can be refused before any data is made; returns the mesh.

  Raises:
    ValueError: mesh, rules, batch sizes, clips or the procedure do not fit.
  """
  _check_inputs(config)
  paired.Auxiliary.of(config)
  mesh, rules = open_mesh(config, devices)
  parts, batch_size = config.get("accumulate", 1), config["batch_size"]
  if parts < 1 or batch_size % parts:
    raise ValueError(f"config.accumulate={parts} does not divide config.batch_size={batch_size}")
  micro = " / config.accumulate" if parts > 1 else ""
  sharding.check_batch(batch_size // parts, mesh, f"config.batch_size{micro}")
  sharding.check_batch(config["evaluate"]["batch_size"], mesh, "config.evaluate.batch_size")
  procedure = procedures.from_config(config)
  if config["mesh"].get("rules") not in (None, *sharding.RULES):  # those fit any parameters
    abstract_state(procedure, mesh, rules)
  return mesh


def _check_inputs(config: Mapping[str, Any]) -> None:
  """Raises ValueError unless the model is one of what the data gives: images, vectors, clips."""
  cut = clips.Clips.of(config)
  if _takes_vectors(config) != bool(config["data"].get("features")):
    raise ValueError(
      f"config.data.features={config['data'].get('features')!r} with config.model.encoder.name="
      f"{config['model'].get('encoder', {}).get('name')!r}: features.Precomputed is for features,"
      " and they are for it"
    )
  over_time = (config["model"].get("temporal") or {}).get("name", "temporal.FrameWise")
  if over_time != "temporal.FrameWise" and not cut:
    raise ValueError(
      f"config.model.temporal needs clips for {over_time}: set config.data.clips.length, their"
      " number of frames"
    )
  if cut and not config["labels"]:
    raise ValueError(
      f"config.data.clips.length={cut.length} without config.labels: what learns without labels"
      " learns from images; use 0"
    )
  if cut and config["procedure"].get("mixup_alpha"):
    raise ValueError("config.procedure.mixup_alpha mixes images: use 0 with config.data.clips")
  if cut and config["data"].get("sampling", "uniform") != "uniform":
    raise ValueError(
      f"config.data.sampling={config['data']['sampling']!r} is of images: use 'uniform' with"
      " config.data.clips"
    )
