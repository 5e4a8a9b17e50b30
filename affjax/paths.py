"""How a parameter is named wherever patterns choose among them: sharding, groups, freezing."""

import difflib
import re
from collections.abc import Iterable
from typing import Any

import jax

_NO_CUT = r"(?:(?<!\d)|(?!\d))"  # not between two digits


def name(path: tuple[Any, ...]) -> str:
  """A key path of a tree -> "model/encoder/blocks/0/attention/out/kernel".

  Keys of dicts, indices of sequences and names of attributes, joined by "/".
  """
  return jax.tree_util.keystr(path, simple=True, separator="/")


def named(tree: Any) -> dict[str, Any]:
  """Name -> leaf, in the order of the tree's leaves."""
  return {name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def pattern(text: str, where: str) -> re.Pattern[str]:
  """Compiles a regular expression that is to be found (`search`) in names; "^" is their start.

  It never cuts a number in two: "blocks/[0-3]" is in ".../blocks/3/mlp" and not in ".../blocks/11".

  Args:
    text: the expression.
    where: the field of the config that holds it, for the error.

  Raises:
    ValueError: it is no regular expression.
  """
  try:
    return re.compile(f"{_NO_CUT}(?:{text}){_NO_CUT}")
  except (re.error, OverflowError, RecursionError) as e:
    raise ValueError(f"{where}={text!r} is no regular expression: {e}") from e


def like(text: str, names: Iterable[str]) -> str:
  """A few of the names, those most like a text first: for errors about what is not there."""
  return ", ".join(difflib.get_close_matches(text, list(names), 3, cutoff=0))
