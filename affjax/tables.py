"""Tables written block by block, in constant memory: CSV (RFC 4180) and Parquet.

A table is written beside its place, as NAME.partial.csv, and renamed when it is complete. What a
run left that was stopped is there, under that name. CSV holds as many digits as it takes to read
the same numbers again; what is not there is empty.
"""

import csv
import math
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SUFFIXES = (".csv", ".parquet")
STDOUT = "-"
# What a column holds -> Arrow's type.
KINDS = {
  "text": "string",
  "whole": "int64",
  "time": "float64",
  "real": "float32",
  "flag": "int8",
}

Columns = Mapping[str, Sequence[Any]]


def partial(path: Path) -> Path:
  """Where a file is written until it is complete."""
  return path.with_name(f"{path.stem}.partial{path.suffix}")


class Table:
  """A table that is open for writing; at the end of its `with` block it is complete.

  Args:
    where: a path that ends as one of `SUFFIXES`, or "-": CSV on stdout.
    kinds: column -> a key of `KINDS`.

  Raises:
    ValueError: PyArrow is missing.
  """

  def __init__(self, where: str, kinds: Mapping[str, str]) -> None:
    self.path = None if where == STDOUT else Path(where)
    self.rows = 0
    self._kinds = kinds
    parquet = self.path and self.path.suffix == ".parquet"
    self._write = self._parquet() if parquet else self._csv()

  def __enter__(self) -> "Table":
    return self

  def __exit__(self, kind: object, error: object, trace: object) -> None:
    self._file.close() if self.path else self._file.flush()
    if self.path and kind is None:
      partial(self.path).replace(self.path)
    elif self.path and not self.rows:
      partial(self.path).unlink()

  def write(self, columns: Columns) -> None:
    """Adds rows: all columns, None where there is no value."""
    self._write(columns)
    self.rows += len(next(iter(columns.values())))

  def _csv(self) -> Any:
    if self.path:
      self._file = partial(self.path).open(
        "w", encoding="utf-8", errors="surrogateescape", newline=""
      )
    else:
      self._file = sys.stdout
    writer = csv.writer(self._file)
    writer.writerow(self._kinds)
    self._file.flush()  # here and below: what there is can be read, whatever comes

    def write(columns: Columns) -> None:
      writer.writerows(zip(*(map(_cell, columns[name]) for name in self._kinds), strict=True))
      self._file.flush()

    return write

  def _parquet(self) -> Any:
    try:
      import pyarrow as pa
      import pyarrow.parquet as pq
    except ImportError as e:
      raise ValueError('Parquet is written by PyArrow: pip install "affjax[tables]"') from e
    types = {name: getattr(pa, KINDS[kind])() for name, kind in self._kinds.items()}
    schema = pa.schema(list(types.items()))
    self._file = pq.ParquetWriter(partial(self.path), schema)

    def write(columns: Columns) -> None:
      arrays = [pa.array(list(map(_value, columns[name])), types[name]) for name in types]
      self._file.write_table(pa.Table.from_arrays(arrays, schema=schema))

    return write


def _value(value: Any) -> Any:
  """A Python value; None for what is no number, and names of files as readable text."""
  if isinstance(value, np.generic):
    value = value.item()
  if isinstance(value, float) and math.isnan(value):
    return None
  if isinstance(value, str):
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
  return value


def _cell(value: Any) -> Any:
  """A cell of a CSV: the shortest text that is read as the same number."""
  if value is None or isinstance(value, float | np.floating) and np.isnan(value):
    return ""
  return str(value) if isinstance(value, np.generic) else value


class Vectors:
  """Rows of numbers, which become one array of an .npz: complete at the end of its `with` block.

  Args:
    path: of the .npz.
    name: of the array, float32.
  """

  def __init__(self, path: Path, name: str) -> None:
    self.path, self._name = path, name
    self.rows, self._width = 0, 0
    # An array begins with its length, which is not known before the end.
    self._numbers = tempfile.TemporaryFile(dir=path.resolve().parent)  # noqa: SIM115

  def __enter__(self) -> "Vectors":
    return self

  def __exit__(self, kind: object, error: object, trace: object) -> None:
    with self._numbers:
      if not self.rows:
        return
      self._pack()
    if kind is None:
      partial(self.path).replace(self.path)

  def write(self, rows: np.ndarray) -> None:
    """Adds [rows, width]; every time of one width."""
    self._numbers.write(np.ascontiguousarray(rows, "<f4").tobytes())
    self.rows, self._width = self.rows + len(rows), rows.shape[1]

  def _pack(self) -> None:
    self._numbers.seek(0)
    shape = self.rows, self._width
    with (
      zipfile.ZipFile(partial(self.path), "w") as archive,
      archive.open(f"{self._name}.npy", "w", force_zip64=True) as member,
    ):
      described = {"descr": "<f4", "fortran_order": False, "shape": shape}
      np.lib.format.write_array_header_1_0(member, described)
      shutil.copyfileobj(self._numbers, member)
