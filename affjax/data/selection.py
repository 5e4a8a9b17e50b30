"""Rows of a data set by name: a split, several, a fold of them, every n-th frame.

  train                              a split
  train+validation                   the rows of both, in this order
  train+validation:fold=0/5          the first of five folds
  train+validation:not_fold=0/5      the other four
  train:every=10                     the first frame that is there of every ten
  train:labelled                     rows with any label

What follows a colon is applied from left to right. It stands wherever a config or a flag names a
split: `--config.data.train=train+validation:not_fold=0/5
--config.data.select=train+validation:fold=0/5`.

Folds never part a person or a video, nor the two people of one video (Aff-Wild2's `NAME_left` and
`NAME_right`): rows that share any of these go together. They are of about equal numbers of rows,
and depend on names and numbers of rows alone, not on the order of the splits.
"""

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

_STEP = re.compile(r"(fold|not_fold)=(\d{1,4})/(\d{1,4})|every=(\d{1,6})|labelled", re.ASCII)
_SIDE = re.compile(rb"_(?:left|right)\Z")


@dataclasses.dataclass(frozen=True)
class Selection:
  """What a name stands for.

  Attributes:
    splits: of the data set.
    steps: what follows the splits, in order, such as "fold=0/5".
  """

  splits: tuple[str, ...]
  steps: tuple[str, ...] = ()

  @classmethod
  def parse(cls, name: str) -> "Selection":
    """Reads a name.

    Raises:
      ValueError: it cannot be one; says what can.
    """
    splits, *steps = name.split(":")
    found = [_STEP.fullmatch(step) for step in steps]
    parts = splits.split("+")
    bad = [m for m in found if m and m[1] and not int(m[2]) < int(m[3])]
    zero = [m for m in found if m and m[4] and not int(m[4])]
    if not all(parts) or len(set(parts)) < len(parts) or not all(found) or bad or zero:
      raise ValueError(
        f"split {name!r}: use names of splits with + between them, and after them any of :fold=K/N"
        " and :not_fold=K/N (K from 0 to N-1), :every=N, :labelled"
      )
    return cls(tuple(parts), tuple(steps))

  @property
  def whole(self) -> bool:
    """Whether it is one split as it is."""
    return len(self.splits) == 1 and not self.steps

  def rows(self, table: Mapping[str, np.ndarray], labelled: np.ndarray) -> np.ndarray:
    """Which rows of its splits, one after the other, it stands for.

    Args:
      table: `key`, and where the data set has them `person`, `video`, `frame`: [rows], see
        `affjax.data.records.label_table`.
      labelled: [rows] bool.

    Returns:
      [selected] int64, increasing.

    Raises:
      ValueError: no row is left, or the data set has no frames of which there could be every n-th.
    """
    taken = np.arange(len(labelled))
    for step in self.steps:
      match = _STEP.fullmatch(step)
      if match[1]:
        # Over all rows: a fold is the same, whatever was left out before.
        inside = folds(table, int(match[3]))[taken] == int(match[2])
        taken = taken[inside == (match[1] == "fold")]
      elif match[4]:
        taken = taken[_every(table, taken, int(match[4]))]
      else:
        taken = taken[labelled[taken]]
      if not len(taken):
        raise ValueError(f"{'+'.join(self.splits)}:{step}: no row is left")
    return taken


def groups(table: Mapping[str, np.ndarray]) -> np.ndarray:
  """[rows] number of the group of each row: what shares a person or a video, directly or by others.

  A row that has neither is a group of its own.
  """
  count = nodes = len(table["key"])
  edges = [np.zeros((2, 0), np.int64)]
  for column in ("person", "video"):
    if column in table:
      names, of_row = np.unique(table[column], return_inverse=True)
      bases, of_name = np.unique(
        [_SIDE.sub(b"", name) for name in names.tolist()], return_inverse=True
      )
      known = np.flatnonzero(names[of_row] != b"")
      edges.append(np.stack([known, nodes + of_name[of_row[known]]]))
      nodes += len(bases)
  rows, to = np.concatenate(edges, 1)
  graph = sparse.coo_matrix((np.ones(len(rows), bool), (rows, to)), shape=(nodes, nodes))
  found = csgraph.connected_components(graph, directed=False)[1][:count]
  return np.unique(found, return_inverse=True)[1]


def folds(table: Mapping[str, np.ndarray], count: int) -> np.ndarray:
  """[rows] fold of each row, 0 to count - 1: the largest groups first, each to the smallest fold.

  Raises:
    ValueError: there are fewer groups than folds.
  """
  group = groups(table)
  sizes = np.bincount(group)
  if len(sizes) < count:
    raise ValueError(
      f"{count} folds of {len(sizes)} groups of people and videos: use at most {len(sizes)} folds"
    )
  least = _least_keys(table["key"], group, len(sizes))
  digests = [hashlib.md5(key).digest() for key in least]
  order = sorted(range(len(sizes)), key=lambda g: (-sizes[g], digests[g]))
  of_group, totals = np.zeros(len(sizes), int), [0] * count
  for g in order:
    of_group[g] = smallest = totals.index(min(totals))
    totals[smallest] += int(sizes[g])
  return of_group[group]


def _least_keys(keys: np.ndarray, group: np.ndarray, count: int) -> list[bytes]:
  """The first key of each group in the order of the alphabet: its name, whatever the order."""
  order = np.argsort(keys, kind="stable")
  _, first = np.unique(group[order], return_index=True)
  return [bytes(keys[order[i]]) for i in first[:count]]


def _every(table: Mapping[str, np.ndarray], taken: np.ndarray, step: int) -> np.ndarray:
  """Places in `taken` of the first row of every `step` frame numbers of each person and video."""
  if "frame" not in table or (table["frame"][taken] < 0).any():
    raise ValueError(f":every={step} needs the frame number of every row, which this set lacks")
  nobody = np.zeros(len(table["key"]), "S1")
  columns = [table.get("video", nobody)[taken], table.get("person", nobody)[taken]]
  clip = np.zeros(len(taken), np.int64)
  for column in columns:
    clip = clip * (len(taken) + 1) + np.unique(column, return_inverse=True)[1]
    clip = np.unique(clip, return_inverse=True)[1]
  frame = table["frame"][taken]
  # One-based numbers and those from 0 alike: the first of all is in a bin that begins with it.
  parts = np.stack([clip, (frame - frame.min()) // step])
  order = np.lexsort((frame, parts[1], parts[0]))
  sorted_parts = parts[:, order]
  first = np.ones(len(taken), bool)
  first[1:] = (sorted_parts[:, 1:] != sorted_parts[:, :-1]).any(0)
  return np.sort(order[first])


def concatenated(tables: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """Columns of several splits, one after the other."""
  return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
