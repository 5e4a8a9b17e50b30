"""The device mesh, and where arrays live on it. Models know nothing of it."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh(data: int = -1, model: int = 1) -> Mesh:
  """A mesh of axes ("data", "model") over all devices of all processes.

  Args:
    data: devices along which batches are split; -1: all that are left.
    model: devices along which one copy of the parameters may be split.

  Raises:
    ValueError: the sizes do not fit the number of devices.
  """
  devices = jax.device_count()
  if data == -1 and model > 0:
    data = devices // model
  if data < 1 or model < 1 or data * model != devices:
    raise ValueError(
      f"mesh data={data} x model={model} does not cover {devices} devices: set config.mesh.data=-1"
      " and a config.mesh.model that divides them"
    )
  # Auto: with the default (Explicit) a learned token cannot be joined to a batch that is split.
  return jax.make_mesh((data, model), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
  """One whole copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
  """First dimension along the data axis."""
  return NamedSharding(mesh, PartitionSpec("data"))


def check_batch(batch_size: int, mesh: Mesh, name: str) -> None:
  """Raises ValueError unless global batches of this size can be split over the mesh."""
  if batch_size < 1 or batch_size % mesh.shape["data"]:
    raise ValueError(
      f"{name}={batch_size} is not a multiple of the {mesh.shape['data']} devices of the mesh's"
      " data axis"
    )


def global_batch(batch: Any, mesh: Mesh) -> Any:
  """This process's rows (host arrays) -> global arrays, split along the data axis."""
  sharding = split_batch(mesh)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch
  )


def local_rows(tree: Any) -> Any:
  """Global arrays, split along the data axis -> this process's rows as host arrays."""

  def rows(x: jax.Array) -> np.ndarray:
    parts = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])

  return jax.tree.map(rows, tree)


def all_rows(tree: Any) -> Any:
  """One host array of each process -> all of them, stacked along a new first axis.

  Bytes travel rather than numbers: jax would round float64 to float32.
  """
  if jax.process_count() == 1:
    return jax.tree.map(lambda x: np.asarray(x)[None], tree)

  def gather(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x)
    every = multihost_utils.process_allgather(np.frombuffer(x.tobytes(), np.uint8))
    return np.stack([np.frombuffer(row.tobytes(), x.dtype).reshape(x.shape) for row in every])

  return jax.tree.map(gather, tree)
