"""What the numbers of AffectNet mean, in both releases."""

from collections.abc import Sequence

import numpy as np

from affjax.labels import EXPRESSION_AFFECTNET
from tfds_builders import tables
from tfds_builders.image_folder.table import NUMBER

NO_EXPRESSION = {8: "none", 9: "uncertain", 10: "no face"}
UNLABELLED = -2  # of valence and arousal


def expression(text: str) -> int:
  """A code from 0 to 10: an index of `EXPRESSION_AFFECTNET` or a key of `NO_EXPRESSION`."""
  value = float(text) if NUMBER.fullmatch(text) else -1
  if value not in range(11):
    raise ValueError(
      f"expression {text!r}: use 0 to 7 ({', '.join(EXPRESSION_AFFECTNET)}) or 8 to 10"
      f" ({', '.join(NO_EXPRESSION.values())})"
    )
  return int(value)


def affect(name: str, text: str) -> float:
  """Valence or arousal, NaN where it is not annotated."""
  value = float(text) if NUMBER.fullmatch(text) else np.nan
  if value == UNLABELLED:
    return np.nan
  if not -1 <= value <= 1:
    raise ValueError(
      f"{name} {text!r}: use a number from -1 to 1, or {UNLABELLED} where it is not known"
    )
  return value


def labels(expressions: Sequence[int], va: Sequence[tuple[float, float]]) -> dict[str, np.ndarray]:
  """Labels as a `Table` has them, of [rows] indices and [rows] pairs."""
  return {
    "va": np.array(va, np.float32).reshape(-1, 2),
    "expression": tables.one_hot(np.array(expressions, int), len(EXPRESSION_AFFECTNET)),
  }


def notes(left_out: Sequence[int]) -> list[str]:
  """Says of the rows that have no expression how many there are, by their codes."""
  if not left_out:
    return []
  counts = ", ".join(f"{name} {left_out.count(code)}" for code, name in NO_EXPRESSION.items())
  return [f"{len(left_out)} rows left out, they have no expression: {counts}"]
