"""Any folder of images with a CSV of paths and labels: your own data, under a name of your own."""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from affjax.labels import EXPRESSIONS, TASKS, VA
from tfds_builders import images, tables
from tfds_builders.image_folder import table


def label_names(rows: table.Rows) -> dict[str, list[str]]:
  """Task -> names: what the CSV has columns for, and of the expressions those that occur."""
  occur = set(rows.columns.get("expression", ()))
  names = {
    "va": [name for name in VA if name in rows.columns],
    "expression": [name for i, name in enumerate(EXPRESSIONS) if i in occur],
    "au": rows.units,
  }
  return {task: of_task for task, of_task in names.items() if of_task}


def labels_of(rows: table.Rows, names: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
  """Labels as a `Table` has them; [rows, 0] of the tasks that have no names."""
  count = len(rows.lines)
  named = [EXPRESSIONS.index(name) for name in names.get("expression", ())]
  expression = rows.columns.get("expression", np.full(count, -1))
  stack = lambda task: np.array(
    [rows.columns[name] for name in names.get(task, ())], np.float32
  ).T.reshape(count, -1 if names.get(task) else 0)
  return {
    "va": stack("va"),
    "expression": tables.one_hot(expression, len(EXPRESSIONS))[:, named],
    "au": stack("au"),
  }


class Builder(tables.Builder):
  """The splits of the CSV, or .8/.1/.1; rows in its order. The config is the set's own name."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "Images of any size; labels by name."}
  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  A folder of images with a CSV (columns path, and any of person, video, frame, split, valence,
  arousal, expression, AU1, AU2, ...). Then, under a name of your choice:
    python -m affjax.data.prepare image_folder --config=NAME --source=FOLDER
  """

  @classmethod
  def name_config(cls, name: str) -> tfds.core.BuilderConfig:
    """The config of a user's data set.

    Raises:
      ValueError: the name cannot be one of a folder.
    """
    name = name or "default"
    if not re.fullmatch(r"\w[\w-]*", name, re.ASCII):
      raise ValueError(f"image_folder config {name!r}: use a name of letters, digits, _ and -")
    return tfds.core.BuilderConfig(name=name, description="A folder of images and its CSV.")

  def _info(self) -> tfds.core.DatasetInfo:
    text, integer = tfds.features.Text(), tfds.features.Scalar(np.int64)
    return self.dataset_info_from_configs(
      features=tables.features(
        None,
        dict.fromkeys(TASKS),
        person=text,
        video=text,
        frame=integer,
        line=integer,
        image_path=text,
      ),
      metadata=tfds.core.MetadataDict({"labels": {}}),  # of the CSV, once it is read
      disable_shuffling=True,
    )

  def read(self, source: Path) -> dict[str, tables.Table]:
    """Reads the CSV; warns on stderr of people in two splits and of splits without rows."""
    path = images.inside(source, table.find(source))
    rows = table.read(path)
    _check_paths(source, path, rows)
    split = table.splits(rows)
    _warn(path, rows, split)
    names = label_names(rows)
    self.info.metadata["labels"] = names
    column = lambda name, empty: rows.columns.get(name, [empty] * len(split))
    whole = tables.Table(
      source=source,
      folder=source,
      images=rows.columns["path"],
      keys=[f"{part}/{line:06d}" for part, line in zip(split, rows.lines, strict=True)],
      labels=labels_of(rows, names),
      fields={
        "person": column("person", ""),
        "video": column("video", ""),
        "frame": column("frame", -1),
        "line": rows.lines,
        "image_path": rows.columns["path"],
      },
    )
    parts = {name: whole.take(np.array(split) == name) for name in table.SPLITS}
    return {name: part for name, part in parts.items() if len(part)}


def _check_paths(source: Path, path: Path, rows: table.Rows) -> None:
  names = rows.columns["path"]
  lost = np.flatnonzero(~images.present(source, names, source))
  if len(lost):
    more = f" (and of {len(lost) - 1} more rows)" if len(lost) > 1 else ""
    first = lost[0]
    raise ValueError(f"{path}:{rows.lines[first]}: path {names[first]!r}: no such file{more}")


def _warn(path: Path, rows: table.Rows, split: Sequence[str]) -> None:
  twice = table.in_two(rows, split)
  if twice:
    print(
      f"warning: {path}: {len(twice)} people are in more than one split ({', '.join(twice[:5])}),"
      " so scores are of faces seen in training",
      file=sys.stderr,
    )
  empty = [name for name in ("train", "validation", "test") if name not in split]
  if empty and "split" not in rows.columns:
    print(
      f"warning: {path}: no row falls into {' or '.join(empty)} (rows are split by a hash of"
      " person, else video, else path): say yourself in a column split",
      file=sys.stderr,
    )
