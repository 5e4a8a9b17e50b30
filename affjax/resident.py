"""A split in the memory of the devices: its batches are gathered inside the step, no loader runs.

The order is the one that `pipeline.order` gives, and a batch holds what `Records.batch` would, so a
run may be stopped with one placement and go on with another.
"""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from affjax import sharding
from affjax.data import pipeline
from affjax.data.records import Records

PLACEMENTS = ("auto", "stream", "device")
# Share of a device's free memory that a split may take where nobody asked for it.
SHARE = 0.25
_CHUNK = 256  # rows that are read at a time


@dataclasses.dataclass(frozen=True)
class Plan:
  """Where a split lives while it is trained on.

  Attributes:
    where: "stream" (on disk), "whole" (on every device) or "spread" (over all of them).
    size: bytes that the split takes.
    free: bytes that are free on the device that has least; None where it is not known.
  """

  where: str
  size: int
  free: int | None

  def __str__(self) -> str:
    if self.where == "stream":
      return "training images are streamed"
    place = {"whole": "in the memory of each device", "spread": "spread over the devices' memory"}
    return f"training images are {place[self.where]} ({self.size / 1e6:,.0f} MB)"


def plan(placement: str, records: Records, mesh: Mesh, rows: int = 0) -> Plan:
  """Where a split is to live.

  Args:
    placement: "stream"; "device": in device memory, spread over the devices where it does not fit
      whole on each; "auto": that if it takes at most `SHARE` of what is free, else streamed.
    records: the split.
    mesh: the devices.
    rows: how many are to be there; 0: those of the split, each once.

  Raises:
    ValueError: no such placement, or the devices together are too small.
  """
  if placement not in PLACEMENTS:
    raise ValueError(f"config.data.placement={placement!r}: use one of {', '.join(PLACEMENTS)}")
  one = jax.tree.leaves(records.batch(np.array([-1])))
  size = (rows or len(records)) * sum(x.nbytes for x in one)
  free = _free(mesh)
  if placement == "stream" or (placement == "auto" and free is None):
    return Plan("stream", size, free)
  limit = free if placement == "device" else SHARE * free
  if free is None or size <= limit:
    return Plan("whole", size, free)
  if size / mesh.size <= limit:
    return Plan("spread", size, free)
  if placement == "auto":
    return Plan("stream", size, free)
  raise ValueError(
    f"config.data.placement='device': the split takes {size / 1e9:.1f} GB, and the {mesh.size}"
    f" device(s) have {mesh.size * free / 1e9:.1f} GB free: use 'stream' or more devices"
  )


def fits(placement: str, records: Records, mesh: Mesh, rows: int = 0) -> bool:
  """Whether a split beside the one that is trained on may stay on the devices, too; see `plan`."""
  return placement != "stream" and plan("auto", records, mesh, rows).where != "stream"


def _free(mesh: Mesh) -> int | None:
  """Bytes free on the device that has least: processes must come to the same plan."""
  own = _own_free(mesh)
  if jax.process_count() == 1:
    return own
  # float32: JAX has no int64 by default.
  known = multihost_utils.process_allgather(np.float32(-1 if own is None else own))
  return None if known.min() < 0 else int(known.min())


def _own_free(mesh: Mesh) -> int | None:
  """The same of this process's devices; fake ones share what there is; None: not known."""
  own = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
  if own[0].platform == "cpu":
    return _host_memory() // len(own)
  known = [device.memory_stats() or {} for device in own]
  if not all("bytes_limit" in stats for stats in known):
    return None
  return min(stats["bytes_limit"] - stats.get("bytes_in_use", 0) for stats in known)


def _host_memory() -> int:
  """Bytes of main memory that are free or can be freed."""
  try:
    lines = Path("/proc/meminfo").read_text().splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
    return 1024 * int(kilobytes)
  except (OSError, StopIteration):
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


class Resident:
  """A split on the devices.

  Args:
    records: the split; read and decoded here, once.
    mesh: the devices.
    spread: whether each device holds a part of the rows instead of all.
    threads: that read.
    progress: whether to show a bar.
    taught: what the places of a global batch teach; None: all of them everything.

  Attributes:
    arrays: the split as one batch of all its rows and at least one of padding, on the devices.
  """

  def __init__(
    self,
    records: Records,
    mesh: Mesh,
    *,
    spread: bool,
    threads: int = 2,
    progress: bool = False,
    taught: pipeline.Taught | None = None,
  ) -> None:
    self._mesh, self._spread, self._padding = mesh, spread, len(records)
    self._taught = taught or {}
    rows = len(records) + 1
    rows = -(-rows // mesh.size) * mesh.size if spread else rows
    where = NamedSharding(mesh, PartitionSpec(sharding.AXES) if spread else PartitionSpec())
    own = where.addressable_devices_indices_map((rows,)).values()
    parts = sorted({index[0].indices(rows)[:2] for index in own})
    with tqdm(
      total=sum(stop - start for start, stop in parts),
      desc="to the devices",
      unit="image",
      leave=False,
      disable=None if progress else True,
    ) as bar:
      read = {part: _read(records, *part, threads, bar) for part in parts}

    def placed(path: tuple[Any, ...], example: np.ndarray) -> jax.Array:
      def part(index: tuple[slice, ...]) -> np.ndarray:
        found = read[index[0].indices(rows)[:2]]
        for key in path:
          found = found[key.key]
        return found

      return jax.make_array_from_callback((rows, *example.shape[1:]), where, part)

    self.arrays = jax.tree_util.tree_map_with_path(placed, next(iter(read.values())))

  def batch(self, arrays: Any, rows: jax.Array) -> Any:
    """What `pipeline.batches` gives for rows of a global batch; pure, for `jax.jit`.

    Args:
      arrays: `self.arrays`, as an argument: what is closed over would be compiled in.
      rows: [batch] int32, of clips [batch, time], split over the devices; see `rows`.
    """
    split = PartitionSpec(sharding.AXES)
    held = split if self._spread else PartitionSpec()
    gather = jax.shard_map(
      self._gather_spread if self._spread else _gather,
      mesh=self._mesh,
      in_specs=(held, split),
      out_specs=split,
      check_vma=False,
    )
    # The barrier has the step compiled as the one that is given its batch: same samples, same bits.
    return jax.lax.optimization_barrier(pipeline.teaching(gather(arrays, rows), self._taught))

  def _gather_spread(self, arrays: Any, rows: jax.Array) -> Any:
    """Each device gives what it holds of the whole batch, 0 for the rest; the sum is handed out."""
    rows = jax.lax.all_gather(rows, sharding.AXES, tiled=True)
    length = len(arrays["index"])
    rows = rows - jax.lax.axis_index(sharding.AXES) * length
    here = (rows >= 0) & (rows < length)

    def one(x: jax.Array) -> jax.Array:
      found = x[jnp.where(here, rows, 0)]
      mine = jnp.where(
        here.reshape(*here.shape, *[1] * (x.ndim - 1)), found, jnp.zeros((), x.dtype)
      )
      return jax.lax.psum_scatter(mine, sharding.AXES, scatter_dimension=0, tiled=True)

    return jax.tree.map(one, arrays)

  def rows(self, order: grain.MapDataset) -> Iterator[jax.Array]:
    """Rows of the global batches of `order`, copied to the devices ahead of the step.

    A gap of a clip is the row of padding.
    """
    share = pipeline.Share(jax.process_index(), jax.process_count())

    def own(rows: np.ndarray) -> np.ndarray:
      rows = share(rows)
      return np.where(rows < 0, self._padding, rows).astype(np.int32)

    local = order.map(own).to_iter_dataset(
      grain.ReadOptions(num_threads=1, prefetch_buffer_size=16)
    )
    placed = local.map(lambda rows: sharding.global_batch(rows, self._mesh))
    return iter(grain.experimental.ThreadPrefetchIterDataset(placed, prefetch_buffer_size=2))


def _gather(arrays: Any, rows: jax.Array) -> Any:
  return jax.tree.map(lambda x: x[rows], arrays)


def _read(records: Records, start: int, stop: int, threads: int, bar: tqdm) -> dict[str, Any]:
  """Rows start to stop of a split as one batch; those beyond its end are padding."""
  every = np.full(-(-(stop - start) // _CHUNK) * _CHUNK, -1, np.int64)
  real = np.arange(start, min(stop, len(records)))
  every[: len(real)] = real
  found: Any = None
  chunks = pipeline.batches(
    records, grain.MapDataset.source(every.reshape(-1, _CHUNK)), threads=threads
  )
  for number, chunk in enumerate(chunks):
    if found is None:
      found = jax.tree.map(lambda x: np.empty((stop - start, *x.shape[1:]), x.dtype), chunk)
    at = slice(number * _CHUNK, (number + 1) * _CHUNK)
    jax.tree.map(lambda all_rows, x, at=at: _put(all_rows[at], x), found, chunk)
    bar.update(min(_CHUNK, stop - start - number * _CHUNK))
  return found


def _put(into: np.ndarray, rows: np.ndarray) -> None:
  into[:] = rows[: len(into)]
