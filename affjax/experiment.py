"""A config, opened: its data sets, the shapes of its state, what it says of itself."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from jax.sharding import Mesh

from affjax import procedures, sharding, state
from affjax.data import prepare, records


class Data:
  """The data sets of a run, opened: training split, splits to choose by and to report.

  Args:
    config: of the run.
    data_dir: where prepared data lives; None: TFDS's default place.
  """

  def __init__(self, config: Mapping[str, Any], data_dir: str | None = None) -> None:
    data = config["data"]
    self.labels = config["labels"]
    self.build = records.builder(data["name"], data["config"], data_dir)
    self.summary = prepare.prepare(self.build)
    self.image_size = data["image_size"]
    self.select, self.report = data["select"], tuple(data["report"])
    self.train_split = data["train"]
    for split in (self.train_split, self.select, *self.report):
      records.shards(self.build, split)

  def records(self, split: str) -> records.Records:
    """Opens a split in terms of the model's labels."""
    return records.records(self.build, split, self.labels, self.image_size)

  def labelled(self, split: str, task: str) -> int:
    """How many images of a split have labels of a task."""
    count = self.summary["splits"][split].get(task, {}).get("labelled", 0)
    return int(max(count.values(), default=0) if isinstance(count, dict) else count)

  def describe(self) -> str:
    """Counts per split and task; tasks without labels are masked and said to be."""
    config = f" {self.build.builder_config.name}" if self.build.builder_config else ""
    lines = [f"data   {self.build.name}{config} {self.build.version}"]
    for split in dict.fromkeys((self.train_split, self.select, *self.report)):
      counts = self.summary["splits"][split]
      numbers = {task: self.labelled(split, task) for task in self.labels}
      tasks = [f"{t} {n}" if n else f"{t} unlabelled (masked)" for t, n in numbers.items()]
      lines.append(f"       {split}: {counts['images']} images ({', '.join(tasks)})")
    return "\n".join(lines)


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


def check(config: Mapping[str, Any], data_dir: str | None = None) -> None:
  """Opens everything that a run needs, prints what it would be, and stops.

  Raises:
    ValueError: the config or the data do not fit.
  """
  mesh = sharding.make_mesh(**config["mesh"])
  for name, size in (("", config), ("evaluate.", config["evaluate"])):
    sharding.check_batch(size["batch_size"], mesh, f"config.{name}batch_size")
  procedure = procedures.from_config(config)
  data = Data(config, data_dir)
  shapes = abstract_state(procedure, mesh).params["model"]
  print(parameter_overview.get_parameter_overview(shapes, include_stats=False))
  print(describe(config, data, procedure, mesh))
