"""What a run would be, without running it: `--mode=check`.

With a topology (`--topology=v5e:2x4`) the training step is compiled for TPUs that are not there, by
the compiler of the package `libtpu`.
"""

import importlib.util
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from jax.experimental import topologies

from affjax import cost, evaluate, experiment, initialise, procedures, sharding, state, workdir

TOPOLOGIES = ("v5e:2x4", "v5e:4x4", "v5p:2x2x1", "v6e:2x4")
# For libtpu: there are no TPUs on this machine, nor a cloud to ask for their names; no logs; other
# processes may compile too.
_ENVIRONMENT = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # of this machine, whatever the topology
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
  "TPU_LOG_DIR": "disabled",
  "TPU_STDERR_LOG_LEVEL": "3",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def run(
  config: Mapping[str, Any],
  data_dir: str | None = None,
  *,
  topology: str = "",
  compiles: bool = True,
  opens: bool = True,
) -> cost.Cost | None:
  """Prints the resolved config, its data, parameters and costs.

  Args:
    config: plain nested dict, see `configs/`.
    data_dir: where prepared data lives; None: TFDS's default place.
    topology: of TPUs, such as "v5e:2x4"; empty: the devices that are here.
    compiles: whether to compile the training step, which takes as long as when training starts.
    opens: whether to open the data. If not, batches have the shapes that the config says, and
      weights that would come from the labels are those of labels in equal shares.

  Returns:
    What the compiled step costs; None if it was not compiled.

  Raises:
    ValueError: the config, the data or the topology do not fit.
  """
  devices = tpus(topology) if topology else None
  if topology and config["dtype"] == "auto":
    config = {**config, "dtype": "bfloat16"}  # as it would be there
  mesh = experiment.check_config(config, devices)
  _, rules = experiment.open_mesh(config, devices)
  data = experiment.Data(config, data_dir) if opens else None
  config = experiment.resolve(config, data)
  procedure = procedures.from_config(config)
  abstract = experiment.abstract_state(procedure, mesh, rules)
  batch = experiment.batch_shapes(config) if data is None else _open(config, data)
  print(_settings(config), "", sep="\n")
  print(_elements(batch), "", sep="\n")
  print(_parameters(abstract), "", sep="\n")
  print(experiment.describe(config, data, procedure, mesh))
  print(_state(abstract), flush=True)
  if taken := initialise.start(config, abstract):
    print(taken.report, flush=True)
  placed = sharding.split_batch(mesh)
  batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed), batch)
  work = cost.flops(procedure.train_step, abstract, batch)
  size = config["batch_size"]
  size *= batch["index"].shape[1] if batch["index"].ndim == 2 else 1
  print(f"step   {work / 1e9:.1f} GFLOP = {size} images x {work / size / 1e9:.3f}", flush=True)
  if not compiles:
    return None
  start = time.perf_counter()
  compiled = experiment.train_step(procedure, abstract, mesh).lower(abstract, batch).compile()
  found = cost.of(compiled)
  print(table(found, f"compiled in {time.perf_counter() - start:.0f} s, for each device"))
  return found


def tpus(topology: str) -> Sequence[jax.Device]:
  """The devices of a topology of TPUs, to compile for.

  Args:
    topology: kind and shape, in chips: "v5e:2x4".

  Raises:
    ValueError: `libtpu` is missing or does not know the topology.
  """
  if importlib.util.find_spec("libtpu") is None:
    raise ValueError(
      f"--topology={topology} needs the TPU compiler: pip install 'affjax[tpu-aot]' (500 MB)"
    )
  for name, value in _ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  try:
    return topologies.get_topology_desc(topology, platform="tpu").devices
  except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError) as e:
    reason = str(e).partition("\n")[0]
    raise ValueError(
      f"--topology={topology}: {reason}; use for example {', '.join(TOPOLOGIES)}"
    ) from e


def _open(config: Mapping[str, Any], data: experiment.Data) -> Any:
  """Opens every split that the run would read; returns the shapes of a training batch."""
  evaluate.check_metric(config, data)
  for split in data.with_no_view((data.select, *data.report)):
    data.records(split).batch(np.arange(1))
    data.windows(split)
  first = data.training.batch(experiment.order(config, data)[0][:1])
  size = config["batch_size"]
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype), first)


def _settings(config: Mapping[str, Any]) -> str:
  """Each leaf under the name that sets it from the shell."""
  leaves = workdir.flatten(config)
  width = max(map(len, leaves))
  return "\n".join(f"{name:{width}}  {_short(value)}" for name, value in leaves.items())


def _short(value: Any) -> str:
  if isinstance(value, list | tuple):
    return " ".join(f"{x:.4g}" if isinstance(x, float) else str(x) for x in value) or "()"
  return "-" if value in (None, "") else str(value)


def _elements(batch: Any) -> str:
  """Names, shapes and dtypes of a batch."""
  leaves = workdir.flatten(batch, "batch.")
  width = max(map(len, leaves))
  return "\n".join(f"{name:{width}}  {x.dtype!s:8}{list(x.shape)}" for name, x in leaves.items())


def _parameters(abstract: state.TrainState) -> str:
  """clu's table; where anything is split, with how."""
  split = any(x.sharding.spec for x in jax.tree.leaves(abstract))
  stats = "sharding" if split else False
  shown = parameter_overview.get_parameter_overview(abstract.params, include_stats=stats)
  return shown.rpartition("\nTotal")[0]  # which is a float where there are scalars


def _state(abstract: state.TrainState) -> str:
  """Bytes of the parts of the state, and of each device's share."""

  def size(tree: Any, share: bool) -> float:
    shape = lambda x: x.sharding.shard_shape(x.shape) if share else x.shape
    return sum(int(np.prod(shape(x))) * x.dtype.itemsize for x in jax.tree.leaves(tree)) / 1e6

  parts = {
    "parameters": abstract.params,
    "optimiser": abstract.opt_state,
    "moving average": abstract.ema,
    "statistics": abstract.model_state,
  }
  sizes = ", ".join(f"{n} {size(tree, False):.1f}" for n, tree in parts.items() if size(tree, 0))
  return f"state  {sizes} MB; each device holds {size(abstract, True):.1f} MB"


def table(found: cost.Cost, title: str) -> str:
  """A cost as text."""
  rows = {
    "FLOP (XLA; loops once)": f"{found.flops / 1e9:12,.1f} G",
    "read and written (likewise)": f"{found.accessed / 1e6:12,.1f} MB",
    "memory: arguments": f"{found.arguments / 1e6:12,.1f} MB",
    "        temporaries": f"{found.temporaries / 1e6:12,.1f} MB",
    "        outputs not donated": f"{found.outputs / 1e6:12,.1f} MB",
    "        program": f"{found.code / 1e6:12,.1f} MB",
    "        in all": f"{found.memory / 1e6:12,.1f} MB",
  }
  for kind, sent in found.collectives.items():
    rows[f"{kind} x {sent.count}"] = f"{sent.bytes / 1e6:12,.1f} MB"
  if not found.collectives:
    rows["collectives"] = f"{'none':>12}"
  return "\n".join([f"       {title}", *(f"         {n:30}{v}" for n, v in rows.items())])
