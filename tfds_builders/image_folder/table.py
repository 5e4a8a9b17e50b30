"""The CSV of an image folder: read strictly, cell by cell, so that no label is lost to a typo."""

import csv
import dataclasses
import difflib
import hashlib
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from affjax.labels import EXPRESSIONS, VA

SPLITS = ("train", "dev", "validation", "test")
COLUMNS = ("path", "person", "video", "frame", "split", *VA, "expression")
UNIT = re.compile(r"AU[1-9]\d?", re.ASCII)
NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
CHOSEN = "labels.csv"  # of several


@dataclasses.dataclass(frozen=True)
class Rows:
  """What the CSV says.

  Attributes:
    columns: column -> [rows] values: text; frame as int, -1 where empty; numbers and units as
      float, NaN where empty; expressions as index of `EXPRESSIONS`, -1 where empty.
    lines: [rows] line on which a row ends.
  """

  columns: dict[str, list]
  lines: list[int]

  @property
  def units(self) -> list[str]:
    """The action units, in the order of their columns."""
    return [name for name in self.columns if UNIT.fullmatch(name)]


class _Illegal(ValueError):
  """What a cell may hold; file, line and column are added above."""


def find(source: Path) -> Path:
  """The CSV of a folder: the only one, or `labels.csv`.

  Raises:
    ValueError: there is none, or several of other names.
  """
  found = sorted(path for path in source.glob("*.csv") if path.is_file())
  chosen = [path for path in found if path.name == CHOSEN] or found
  if len(chosen) != 1:
    there = ", ".join(path.name for path in found) if found else "none"
    raise ValueError(f"{source}: expected one .csv, or {CHOSEN} among several; there is {there}")
  return chosen[0]


def read(path: Path) -> Rows:
  """Reads the CSV.

  Raises:
    ValueError: names the file, the line, the column, the value and what is allowed.
  """
  try:
    text = path.read_bytes().decode("utf-8-sig")
  except UnicodeDecodeError as e:
    raise ValueError(f"{path}: not UTF-8 text (byte {e.start}): save it as CSV UTF-8") from None
  reader = csv.reader(io.StringIO(text, newline=""), strict=True)
  try:
    header = [name.strip() for name in next(reader, [])]
    _check_header(header, str(path))
    cells = [_cell(name) for name in header]
    values: list[list] = [[] for _ in header]
    lines = []
    for row in reader:
      if not row:
        continue  # an empty line
      if len(row) != len(header):
        raise ValueError(
          f"{path}:{reader.line_num}: {len(row)} fields; the header has {len(header)}"
        )
      lines.append(reader.line_num)
      for i, (cell, field) in enumerate(zip(cells, row, strict=True)):
        try:
          values[i].append(cell(field.strip()))
        except _Illegal as e:
          raise ValueError(f"{path}:{reader.line_num}: {header[i]} {field!r}: {e}") from None
  except csv.Error as e:
    raise ValueError(f"{path}:{reader.line_num}: {e}") from None
  if not lines:
    raise ValueError(f"{path}: no rows below the header")
  return Rows(dict(zip(header, values, strict=True)), lines)


def _check_header(header: Sequence[str], path: str) -> None:
  allowed = f"{', '.join(COLUMNS)}, AU1, AU2, ..."
  if len(header) == 1 and re.search(r"[;\t]", header[0]):
    raise ValueError(f"{path}:1: columns are separated by commas, not by semicolons or tabs")
  for name in header:
    if name not in COLUMNS and not UNIT.fullmatch(name):
      raise ValueError(f"{path}:1: column {name!r}: {_hint(name, COLUMNS)}use {allowed}")
    if header.count(name) > 1:
      raise ValueError(f"{path}:1: column {name!r} is there twice")
  if "path" not in header:
    raise ValueError(f"{path}:1: no column path; use {allowed}")


def _hint(given: str, known: Sequence[str]) -> str:
  unit = re.fullmatch(r"(?i)AU[ _-]?0*(\d+).*", given)
  short = [name for name in known if given and name.startswith(given.lower())]
  close = short or difflib.get_close_matches(given.lower(), known, 1, cutoff=0.5)
  meant = [f"AU{unit[1]}"] if unit else close
  return f"did you mean {meant[0]!r}? " if meant else ""


def _cell(column: str) -> Callable[[str], Any]:
  """What reads the cells of a column."""
  known = {"path": _path, "frame": _frame, "split": _split, "expression": _expression}
  if column in VA:
    return _number
  return _unit if UNIT.fullmatch(column) else known.get(column, str)


def _path(text: str) -> str:
  path = PurePosixPath(text)
  # What is a path on other systems is none here, so that a CSV means the same everywhere.
  elsewhere = re.search(r"\\|^[A-Za-z]:", text) or not text.isprintable()
  if not text or elsewhere or path.is_absolute() or ".." in path.parts:
    raise _Illegal("use a path inside the folder of the CSV, such as photos/1.jpg")
  return str(path)


def _frame(text: str) -> int:
  if text and not re.fullmatch(r"\d{1,18}", text, re.ASCII):
    raise _Illegal("use an integer from 0 on, or leave it empty")
  return int(text) if text else -1


def _split(text: str) -> str:
  if text not in SPLITS:
    raise _Illegal(f"{_hint(text, SPLITS)}use {', '.join(SPLITS)}")
  return text


def _number(text: str) -> float:
  value = float(text) if NUMBER.fullmatch(text) else np.nan
  if text and not -1 <= value <= 1:
    raise _Illegal("use a number from -1 to 1, or leave it empty where it is not known")
  return value


def _unit(text: str) -> float:
  if text not in ("", "0", "1", "0.0", "1.0"):
    raise _Illegal("use 0 or 1, or leave it empty where it is not known")
  return float(text or np.nan)


def _expression(text: str) -> int:
  if not text:
    return -1
  if text.lower() not in EXPRESSIONS:
    raise _Illegal(
      f"{_hint(text, EXPRESSIONS)}use {', '.join(EXPRESSIONS)} (names, since numbers differ between"
      " data sets), or leave it empty where it is not known"
    )
  return EXPRESSIONS.index(text.lower())


def splits(rows: Rows) -> list[str]:
  """[rows] split of each row: the column's, or .8/.1/.1 by a hash of person, else video, else path.

  So what belongs together stays together, and a row never moves because others are added.
  """
  columns = rows.columns
  if "split" in columns:
    return columns["split"]
  nothing = [""] * len(rows.lines)
  people, videos = columns.get("person", nothing), columns.get("video", nothing)
  groups = zip(people, videos, columns["path"], strict=True)
  return [_share(person or video or path) for person, video, path in groups]


def _share(group: str) -> str:
  share = int(hashlib.md5(group.encode()).hexdigest(), 16) / 2**128
  return "train" if share < 0.8 else "validation" if share < 0.9 else "test"


def in_two(rows: Rows, split: Sequence[str]) -> list[str]:
  """People who are in more than one split, by name."""
  seen: dict[str, set[str]] = {}
  for person, name in zip(rows.columns.get("person", ()), split, strict=False):
    seen.setdefault(person, set()).add(name)
  return sorted(person for person, of in seen.items() if person and len(of) > 1)
