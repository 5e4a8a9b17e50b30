"""Features of a prepared data set: a vector for each image, made once by `affjax.extract`.

A folder holds `features.json` (of which data set, run and step they are, names of the labels) and
for each split `SPLIT.npz` (keys, people, videos, frames; outputs of the run; labels and masks) and
`SPLIT.npy` (the vectors). A config with `data.features` reads the vectors in place of images.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from affjax.data import records

DESCRIBED = "features.json"


def described(folder: Path) -> dict[str, Any]:
  """What `features.json` says, see `affjax.extract`.

  Raises:
    ValueError: it is not there, or lacks a field.
  """
  path = folder / DESCRIBED
  if not path.is_file():
    raise ValueError(f"{folder}: no {DESCRIBED} in it: make one by `python -m affjax.extract`")
  found = records.read_json(path)
  data, width = found.get("data"), found.get("width")
  if not isinstance(data, Mapping) or not isinstance(found.get("splits"), Mapping):
    raise ValueError(f"{path}: no data set or no splits in it: extract the features again")
  if not isinstance(width, int) or width < 1:
    raise ValueError(f"{path}: it was extracted with --outputs_only: there are outputs alone")
  return found


def find(folder: Path, build: Any, fingerprint: str, splits: Sequence[str]) -> "Features":
  """The features of some splits, one after the other.

  Args:
    folder: that `affjax.extract` wrote.
    build: of the data set whose images are meant, from `records.builder`.
    fingerprint: of that data set.
    splits: names.

  Raises:
    ValueError: they are of other data, of other splits, or damaged.
  """
  found = described(folder)
  if found["data"].get("fingerprint") != fingerprint:
    raise ValueError(
      f"config.data.features={folder}: these are features of {found['data'].get('name')}"
      f" {str(found['data'].get('fingerprint'))[:12]}, the data set is {build.name}"
      f" {fingerprint[:12]}: extract them from it"
    )
  there = found["splits"]
  if missing := [split for split in splits if split not in there]:
    raise ValueError(
      f"config.data.features={folder}: no features of {', '.join(missing)}; there are those of"
      f" {', '.join(there) or 'nothing'}: extract them with --splits"
    )
  paths = tuple(str(folder / f"{split}.npy") for split in splits)
  lengths = tuple(build.info.splits[split].num_examples for split in splits)
  features = Features(paths, lengths, found["width"])
  features.check()
  return features


@dataclasses.dataclass(frozen=True)
class Features:
  """Vectors that are read as the images of a split would be, see `records.Images`.

  Attributes:
    paths: of [rows, width] arrays, one a split.
    lengths: rows of each.
    width: numbers in a vector.
    taken: [rows] which rows of the files these are; None: all of them.
  """

  paths: tuple[str, ...]
  lengths: tuple[int, ...]
  width: int
  taken: np.ndarray | None = None

  def __len__(self) -> int:
    return sum(self.lengths) if self.taken is None else len(self.taken)

  def __getstate__(self) -> dict[str, Any]:
    return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

  @functools.cached_property
  def _arrays(self) -> list[np.ndarray]:
    return [np.load(path, mmap_mode="r", allow_pickle=False) for path in self.paths]

  def check(self) -> None:
    """Raises ValueError, naming it, where a file is damaged or of another shape."""
    for path, length in zip(self.paths, self.lengths, strict=True):
      try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
      except (OSError, ValueError, EOFError) as e:
        raise ValueError(f"{path}: cannot be read ({e}): extract the features again") from e
      if found.shape != (length, self.width) or found.dtype not in (np.float16, np.float32):
        raise ValueError(
          f"{path}: {found.dtype} {list(found.shape)}, expected float16 or float32"
          f" {[length, self.width]}: extract the features again"
        )

  def __call__(self, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Reads one batch.

    Args:
      rows: of any shape; -1 is padding.

    Returns:
      `image` [*rows.shape, width] float32, zeros for padding; `index` [*rows.shape] int32.
    """
    rows = np.asarray(rows)
    flat = rows.reshape(-1)
    at = np.maximum(flat, 0)
    at = at if self.taken is None else self.taken[at]
    out = np.zeros((len(flat), self.width), np.float32)
    start = 0
    for array, length in zip(self._arrays, self.lengths, strict=True):
      here = np.flatnonzero((flat >= 0) & (at >= start) & (at < start + length))
      out[here] = array[at[here] - start]
      start += length
    return {"image": out.reshape(*rows.shape, self.width), "index": rows.astype(np.int32)}
