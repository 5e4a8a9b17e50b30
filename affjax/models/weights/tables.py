"""Names of others turned into ours by a table, and rows that tables of convolutions share."""

import re
from collections.abc import Callable, Mapping

import numpy as np

from affjax.models.weights.fitting import some

Arrays = dict[str, np.ndarray]
# Pattern of their names -> ours, as for `re.Match.expand`. Where a pattern ends in `\.`, "weight"
# or "bias" follows on both sides.
Table = tuple[tuple[str, str], ...]

_STATISTICS = (("running_mean", "mean"), ("running_var", "var"))


def normed(theirs: str, ours: str) -> Table:
  """Rows of a norm in torch that is that of a `convolutions.Convolution`, which has its bias."""
  parts = (("weight", "norm/scale"), ("bias", "bias"))
  parts += tuple((name, f"norm/{part}") for name, part in _STATISTICS)
  return tuple((rf"{theirs}\.{name}", f"{ours}/{part}") for name, part in parts)


def norm(theirs: str, ours: str) -> Table:
  """Rows of a norm in torch that is one of its own, as `convolutions.norm_of` makes it."""
  parts = (("weight", "scale"), ("bias", "bias"), *_STATISTICS)
  return tuple((rf"{theirs}\.{name}", f"{ours}/{part}") for name, part in parts)


def turned(array: np.ndarray) -> np.ndarray:
  """Outputs last, where torch has them first; a convolution at each place alone is a product."""
  if array.ndim == 4:
    array = array.transpose(2, 3, 1, 0)  # rows, columns, inner, outer
    return array[0, 0] if array.shape[:2] == (1, 1) else array
  return array.T


def translated(
  arrays: Mapping[str, np.ndarray],
  table: Table,
  beside: re.Pattern[str],
  bare: Callable[[str], str],
  what: str,
) -> list[tuple[str, np.ndarray]]:
  """Our names with the arrays.

  Args:
    arrays: name -> array.
    table: their names -> ours.
    beside: names that are beside the network, and left out.
    bare: what the table has for a name: without a prefix, with `blocks/N/` for a block.
    what: whose names they are, in words.

  Raises:
    ValueError: a name is neither in the table nor beside the network.
  """
  ours, unknown = [], []
  for name, array in arrays.items():
    theirs = bare(name)
    if beside.match(theirs):
      continue
    new = _rename(theirs, table)
    if new is None:
      unknown.append(name)
    else:
      ours.append((new, np.asarray(array)))
  if unknown:
    raise ValueError(
      f"{some(unknown)}: no parameters of {what}; take them out if the model can do without them"
    )
  return ours


def _rename(name: str, table: Table) -> str | None:
  for theirs, ours in table:
    end = r"(weight|bias)" if theirs.endswith(r"\.") else ""
    match = re.fullmatch(theirs + end, name)
    if match:
      return match.expand(ours) + (match[match.re.groups] if end else "")
  return None
