"""Batches whose position is the step.

The order is a pure function of (seed, step): the rows are shuffled globally and anew each epoch
(or within each class, where classes are drawn evenly), cut into global batches, and process p takes
its contiguous part of each. So resuming is `dataset[step:]`, and neither the worker count nor the
number of processes changes which sample is seen when. Of clips it is windows that are shuffled and
cut into batches.

A batch may be made of parts, each with places of its own and drawn from rows of its own: those of
another data set, or those that a task is labelled in, to teach that task alone.
"""

import dataclasses
import functools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from affjax.data import shuffle
from affjax.data.records import Records

Batch = dict[str, Any]
# Task -> [batch] 1 for the places that teach it, 0 for the others; empty: all places teach all.
Taught = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Part:
  """Places of every global batch, next to each other, that are drawn from rows of their own.

  Attributes:
    rows: numbers of the rows; of clips [windows, length] those of their frames, -1 for gaps.
    size: how many places.
    task: the only task that they teach; empty: all of them.
    strata: see `order`.
  """

  rows: range | np.ndarray
  size: int
  task: str = ""
  strata: np.ndarray | None = None


class Share:
  """A process's contiguous rows of each global batch."""

  def __init__(self, process: int, processes: int) -> None:
    self._process = process
    self._processes = processes

  def __call__(self, rows: np.ndarray) -> np.ndarray:
    """rows: [global batch, ...] -> [global batch / processes, ...]."""
    return np.split(np.asarray(rows), self._processes)[self._process]


def in_parts(parts: Sequence[Part], seed: int) -> grain.MapDataset:
  """Step -> rows of its global batch, part after part, for ever.

  Each part has epochs of its own, so smaller ones come round more often.

  Returns:
    A random-access data set of [batch] int64 arrays, of clips [batch, length].
  """
  orders = []
  for stream, part in enumerate(parts):
    numbers = order(len(part.rows), seed, part.size, part.strata, stream)
    own = isinstance(part.rows, np.ndarray)
    rows = _Rows(part.rows) if own else functools.partial(np.add, part.rows.start)
    orders.append(numbers.map(rows))
  steps = min(map(len, orders))
  return grain.experimental.ZipMapDataset([o[:steps] for o in orders]).map(np.concatenate)


def taught_by(parts: Sequence[Part], tasks: Iterable[str]) -> Taught:
  """What the places of a batch teach."""
  if not any(part.task for part in parts):
    return {}
  teaches = lambda part, task: np.full(part.size, part.task in ("", task), np.float32)
  return {task: np.concatenate([teaches(part, task) for part in parts]) for task in tasks}


def teaching(batch: Batch, taught: Taught) -> Batch:
  """A batch, of NumPy or of JAX, with mask 0 for the tasks that its places do not teach."""
  if not taught:
    return batch

  def masked(name: str, mask: Any) -> Any:
    places = taught.get(name.partition("_")[0])  # `expression_strict` is of the expression
    return mask if places is None else mask * places.reshape(-1, *[1] * (mask.ndim - 1))

  return {**batch, "mask": {name: masked(name, mask) for name, mask in batch["mask"].items()}}


def order(
  length: int, seed: int, batch_size: int, strata: np.ndarray | None = None, stream: int = 0
) -> grain.MapDataset:
  """Step -> rows of its global batch, for ever.

  Args:
    length: rows of the split.
    seed: any non-negative integer.
    batch_size: of the global batch. Batches run across the ends of epochs: every row is seen once
      an epoch, and nothing is dropped.
    strata: [length] class of each row, -1 = none; None: all rows alike. Classes are then drawn in
      equal shares, whatever their sizes, each in epochs of its own; so are the rows without one,
      which keep their share of the draws (to within a hundredth of it). Every batch holds these
      shares, to within two rows.
    stream: another one gives another order.

  Returns:
    A random-access data set of [batch_size] int64 arrays.
  """
  # Grain adds the epoch to the seed: unhashed, seed 1 would replay seed 0 one epoch late.
  root = [seed, 0xAFF + stream]
  mixed = lambda *key: int(np.random.SeedSequence([*root, *key]).generate_state(1)[0])
  if strata is None:
    steps = grain.MapDataset.range(sys.maxsize // batch_size)
    return steps.map(_Shuffled(length, mixed(), batch_size))
  if len(strata) != length:
    raise ValueError(f"strata of {len(strata)} rows for a split of {length}")

  def stream(stratum: int) -> grain.MapDataset:
    rows = np.flatnonzero(strata == stratum)
    return grain.MapDataset.source(rows).shuffle(seed=mixed(3 + stratum)).repeat()

  classes = np.unique(strata[strata >= 0]).tolist()
  rows = grain.MapDataset.mix([stream(c) for c in classes])
  if unlabelled := int((strata < 0).sum()):
    rows = grain.MapDataset.mix([stream(-1), rows], [unlabelled, length - unlabelled])
  # A mixture takes turns: unpermuted, a place in the batch would always hold the same class.
  return rows.batch(batch_size).random_map(_permuted, seed=mixed(1))


class _Shuffled:
  """Step -> rows of its batch: what Grain's shuffle, repeat and batch give."""

  def __init__(self, length: int, seed: int, batch_size: int) -> None:
    self._length, self._seed, self._batch_size = length, seed, batch_size
    self._epochs: dict[int, np.ndarray] = {}

  def __getstate__(self) -> dict[str, Any]:
    return self.__dict__ | {"_epochs": {}}

  def __call__(self, step: int) -> np.ndarray:
    """[batch] int64."""
    rows, start = [], int(step) * self._batch_size
    end = start + self._batch_size
    while start < end:
      epoch, place = divmod(start, self._length)
      rows.append(self._epoch(epoch)[place : place + end - start])
      start += len(rows[-1])
    return np.concatenate(rows)

  def _epoch(self, number: int) -> np.ndarray:
    """The rows of an epoch; kept with one beside it: a batch may begin in one and end in the next.

    By each part of a batch its own, as the parts take turns.
    """
    epochs = self._epochs  # any number of threads ask
    if number not in epochs:
      found = shuffle.permutation(self._length, (self._seed + number) % 2**32)
      epochs = {n: rows for n, rows in epochs.items() if abs(n - number) == 1} | {number: found}
      self._epochs = epochs
    return epochs[number]


def _permuted(rows: np.ndarray, generator: np.random.Generator) -> np.ndarray:
  return generator.permutation(rows)


def sequence(length: int, batch_size: int) -> grain.MapDataset:
  """Every row once, in order; the last batch is padded with -1."""
  padded = np.full((-(-length // batch_size), batch_size), -1, np.int64)
  padded.reshape(-1)[:length] = np.arange(length)
  return grain.MapDataset.source(padded)


def of_windows(numbers: grain.MapDataset, windows: np.ndarray) -> grain.MapDataset:
  """Position -> rows of a global batch of clips, [batch, length] int64.

  Args:
    numbers: position -> numbers of windows, from `order` or `sequence`; -1 is padding.
    windows: [windows, length] rows of a split, -1 for gaps: see `affjax.data.clips`.
  """
  return numbers.map(_Rows(windows))


class _Rows:
  """Numbers of rows, or of windows -> the rows that they stand for."""

  def __init__(self, rows: np.ndarray) -> None:
    # The last one is of -1, so that padding is padding.
    self._rows = np.pad(rows, ((0, 1), *[(0, 0)] * (rows.ndim - 1)), constant_values=-1)

  def __call__(self, numbers: np.ndarray) -> np.ndarray:
    return self._rows[numbers]


def _begin_work(worker: int, workers: int) -> None:
  """What a worker does first; it decodes on the CPU and belongs to the process that started it."""
  # Should anything in it touch jax, it must not take a device.
  os.environ["JAX_PLATFORMS"] = "cpu"
  if "jax" in sys.modules:
    sys.modules["jax"].config.update("jax_platforms", "cpu")
  # Ctrl-C in a terminal goes to all: the run still needs its batch, and ends its workers itself.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  if (run := multiprocessing.parent_process()) is not None:
    threading.Thread(target=_end_with, args=(run,), daemon=True).start()


def _end_with(run: Any) -> None:
  """Ends this process when another does, which may have been killed."""
  run.join()
  os._exit(1)


def batches(
  records: Records,
  rows: grain.MapDataset,
  *,
  process: int = 0,
  processes: int = 1,
  workers: int = 0,
  threads: int = 2,
  taught: Taught | None = None,
) -> grain.IterDataset:
  """Reads the batches of `rows` (a data set from one of the functions above, possibly sliced).

  Args:
    records: the split.
    rows: position -> rows of the global batch.
    process: index of this process.
    processes: their number; must divide the global batch.
    workers: processes that read and decode; 0: threads of this one.
    threads: reading threads of each of these.
    taught: what the places of the global batch teach.

  Returns:
    Batches as host arrays (see `Records.batch`), `processes`-th parts of the global ones.
  """
  share = Share(process, processes)
  local = rows.map(share).map(records.images)
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
  dataset = local.to_iter_dataset(options)
  if workers:
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()  # grain's workers read a flag; a notebook parses none
    dataset = dataset.mp_prefetch(
      grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2),
      worker_init_fn=_begin_work,
    )
  own = {task: share(places) for task, places in (taught or {}).items()}
  return dataset.map(lambda batch: teaching(records.labelled(batch), own))
