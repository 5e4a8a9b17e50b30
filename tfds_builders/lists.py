"""Lists of images and labels as text: found, and read line by line."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from tfds_builders import images

Row = TypeVar("Row")


def find(source: Path, places: Sequence[str], name: str) -> Path | None:
  """Finds a list by its name in some folders of the source; None: it is in none of them.

  Raises:
    ValueError: there are two that differ, or a link leads out of the source.
  """
  there = [source / place / name for place in places if (source / place / name).is_file()]
  there = [images.inside(source, path) for path in there]
  if len({path.read_bytes() for path in there}) > 1:
    raise ValueError(f"{' and '.join(map(str, there))} differ: remove the one that does not belong")
  return there[0] if there else None


def need(source: Path, places: Sequence[str], name: str, hint: str = "") -> Path:
  """As `find`, but a list that is in none of the folders is an error, which ends with the hint."""
  found = find(source, places, name)
  if found is None:
    looked = " or ".join(str(source / place) for place in places)
    raise ValueError(f"no {name} in {looked}{hint}")
  return found


def folder(source: Path, places: Sequence[str], names: Sequence[str]) -> Path:
  """The first of some folders of the source that holds one of the files.

  Raises:
    ValueError: none does.
  """
  for place in places:
    # Of names that are too long Path.is_file would raise.
    if any(os.path.isfile(source / place / name) for name in names):
      return source / place
  looked = ", ".join(str(source / place) for place in places)
  raise ValueError(f"no listed image, such as {names[0]}, is in any of {looked}")


def text(path: Path) -> str:
  """The text of a file, without a mark of byte order.

  Raises:
    ValueError: it is no UTF-8.
  """
  try:
    return path.read_bytes().decode("utf-8-sig")
  except UnicodeDecodeError as e:
    raise ValueError(f"{path}: not a text file (byte {e.start} is no UTF-8)") from None


def read(path: Path, row: Callable[[list[str]], Row]) -> tuple[list[int], list[Row]]:
  """Reads a list of fields with white space between them; empty lines are passed over.

  Args:
    path: of the list.
    row: what a line's fields mean; its ValueError is given the file and the line.

  Returns:
    [rows] number of the line, the first is 1; [rows] what `row` returned.

  Raises:
    ValueError: a line is not as it should be, or there is none.
  """
  lines, rows = [], []
  for number, line in enumerate(text(path).split("\n"), 1):
    fields = line.split()
    if not fields:
      continue
    try:
      rows.append(row(fields))
    except ValueError as e:
      raise ValueError(f"{path}:{number}: {e}") from None
    lines.append(number)
  if not rows:
    raise ValueError(f"{path}: it lists nothing")
  return lines, rows


def refuse_twice(path: Path, lines: Sequence[int], images: Sequence[str]) -> None:
  """Raises ValueError, naming both lines, if a list names an image twice."""
  first: dict[str, int] = {}
  for line, image in zip(lines, images, strict=True):
    if image in first:
      raise ValueError(f"{path}:{line}: image {image!r} is in line {first[image]} already")
    first[image] = line
