"""The device mesh, and where arrays live on it. Models know nothing of it.

Batches are split over all devices. The state follows rules: the first pattern that is found in a
parameter's name (`affjax.paths`) gives its tactic,

  replicate    a whole copy on every device
  fsdp         split over all devices: gathered where it is used, its gradient summed into parts
               (ZeRO-3, Rajbhandari et al., 2020, arXiv:1910.02054; FSDP, Zhao et al., 2023,
               arXiv:2304.11277)
  fsdp:model   so over the mesh's model axis, with a copy for every index of the data axis
  fsdp:data    so over the data axis, with a copy for every index of the model axis

and what optimisers and moving averages keep for a parameter follows it. `config.mesh.rules` is one
of RULES by name or such a text: "position=replicate; kernel$=fsdp". What fits no pattern is
replicated.

Activations are not constrained: XLA keeps them split as the batch is.
"""

import math
from collections.abc import Collection, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from affjax import paths

AXES = ("data", "model")
# Tactic -> the axes of the mesh that an array is split over.
TACTICS = {"replicate": (), "fsdp": AXES, "fsdp:model": ("model",), "fsdp:data": ("data",)}
RULES = {"replicated": ".*=replicate", "fsdp": ".*=fsdp", "hybrid": ".*=fsdp:model"}
# Numbers; arrays of fewer (vectors, scalars) stay whole: a part would save less than the message
# costs that brings it back.
SMALL = 8192

Rules = tuple[tuple[str, str], ...]  # pattern, tactic


def make_mesh(data: int = -1, model: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A mesh of axes ("data", "model"); a batch is split over both.

  Args:
    data: how many devices along the first axis; -1: all that are left.
    model: how many along the second: under the rules `hybrid` so many share one copy of the state.
    devices: which; None: all devices of all processes.

  Raises:
    ValueError: the sizes do not fit the number of devices.
  """
  count = jax.device_count() if devices is None else len(devices)
  if data == -1 and model > 0:
    data = count // model
  if data < 1 or model < 1 or data * model != count:
    raise ValueError(
      f"mesh data={data} x model={model} does not cover {count} devices: set config.mesh.data=-1"
      " and a config.mesh.model that divides them"
    )
  # Auto: with the default (Explicit) a learned token cannot be joined to a batch that is split.
  return jax.make_mesh((data, model), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def parse(text: str, mesh: Mesh) -> Rules:
  """Reads rules: a name of RULES, or "PATTERN=TACTIC; PATTERN=TACTIC".

  Raises:
    ValueError: unknown name or tactic, a bad pattern, or a tactic along an axis of one device.
  """
  rules = []
  for part in filter(str.strip, RULES.get(text, text).split(";")):
    pattern, _, tactic = (side.strip() for side in part.rpartition("="))
    if not pattern or tactic not in TACTICS:
      raise ValueError(
        f"config.mesh.rules={text!r}: use one of {', '.join(RULES)}, or PATTERN=TACTIC; ... with"
        f" tactics {', '.join(TACTICS)}"
      )
    paths.pattern(pattern, "config.mesh.rules")
    axes = TACTICS[tactic]
    if axes and mesh.size > 1 and _parts(axes, mesh) == 1:
      raise ValueError(
        f"config.mesh.rules={text!r} splits along the {axes[0]} axis, which has one of"
        f" {mesh.size} devices: set config.mesh.{axes[0]}, or use fsdp, which takes all"
      )
    rules.append((pattern, tactic))
  return tuple(rules)


def _parts(axes: Sequence[str], mesh: Mesh) -> int:
  return math.prod(mesh.shape[axis] for axis in axes)


def partition(shape: Sequence[int], tactic: str, mesh: Mesh) -> PartitionSpec:
  """Where an array of this shape is split: its largest dimension that the devices divide.

  Of equal ones the first. Replicated are what has fewer than SMALL numbers and what has no such
  dimension.
  """
  axes = TACTICS[tactic]
  parts = _parts(axes, mesh)
  fits = [i for i, size in enumerate(shape) if size % parts == 0]
  if parts == 1 or math.prod(shape) < SMALL or not fits:
    return PartitionSpec()
  widest = max(fits, key=lambda i: shape[i])
  return PartitionSpec(*[None] * widest, axes if len(axes) > 1 else axes[0])


def shardings(state: Any, parameters: Collection[str], rules: Rules, mesh: Mesh) -> Any:
  """Where a state lives.

  Args:
    state: tree of arrays or of their shapes.
    parameters: names of all parameters. A leaf of the state belongs to the one whose name its own
      ends with ("opt_state/0/mu/model/norm/scale" to "model/norm/scale"; of several the longest)
      and is replicated where there is none.
    rules: see `parse`.
    mesh: devices.

  Returns:
    A tree like `state` of `NamedSharding`.

  Raises:
    ValueError: a pattern that is found in no parameter's name.
  """
  found = {text: paths.pattern(text, "config.mesh.rules").search for text, _ in rules}
  for text, search in found.items():
    if not any(map(search, parameters)):
      raise ValueError(
        f"config.mesh.rules: {text!r} is in no parameter's name; the closest are"
        f" {paths.like(text, parameters)} (--mode=check lists them)"
      )
  known = frozenset(parameters)

  def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
    keys = paths.name(path).split("/")
    suffixes = ("/".join(keys[i:]) for i in range(len(keys)))
    owner = next((name for name in suffixes if name in known), None)
    fits = (t for text, t in rules if owner is not None and found[text](owner))
    return NamedSharding(mesh, partition(leaf.shape, next(fits, "replicate"), mesh))

  return jax.tree_util.tree_map_with_path(place, state)


def replicated(mesh: Mesh) -> NamedSharding:
  """One whole copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
  """First dimension over all devices."""
  return NamedSharding(mesh, PartitionSpec(AXES))


def check_batch(batch_size: int, mesh: Mesh, name: str) -> None:
  """Raises ValueError unless global batches of this size can be split over the mesh."""
  if batch_size < 1 or batch_size % mesh.size:
    raise ValueError(f"{name}={batch_size} is not a multiple of the {mesh.size} devices")


def global_batch(batch: Any, mesh: Mesh) -> Any:
  """This process's rows (host arrays) -> global arrays, split over all devices."""
  sharding = split_batch(mesh)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch
  )


def local_rows(tree: Any) -> Any:
  """Global arrays, split over all devices -> this process's rows as host arrays."""

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
