"""How a parameter is named wherever patterns choose among them: sharding, groups, freezing."""

import difflib
import re
from collections.abc import Iterable
from typing import Any

import jax


def name(path: tuple[Any, ...]) -> str:
  """A key path of a tree -> "model/encoder/blocks/0/attention/out/kernel".

  Keys of dicts, indices of sequences and names of attributes, joined by "/".
  """
  return jax.tree_util.keystr(path, simple=True, separator="/")


def named(tree: Any) -> dict[str, Any]:
  """Name -> leaf, in the order of the tree's leaves."""
  return {name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def pattern(text: str, where: str) -> re.Pattern[str]:
  """Compiles a pattern of names: a regular expression that fits whole parts of a name.

  "encoder/blocks/1" is found in "model/encoder/blocks/1/mlp/expand/bias", not in
  "model/encoder/blocks/10/mlp/expand/bias"; ".*norm" in ".../attention_norm/scale". `search` it.

  Args:
    text: the expression; "^" and "$" are the ends of the name.
    where: the field of the config that holds it, for the error.

  Raises:
    ValueError: it is no regular expression.
  """
  try:
    return re.compile(rf"(?:^|/)(?:{text})(?:/|$)")
  except (re.error, TypeError) as e:
    raise ValueError(f"{where}={text!r} is not a regular expression: {e}") from e


def like(text: str, names: Iterable[str]) -> str:
  """A few of the names, those most like a text first: for errors about what is not there."""
  return ", ".join(difflib.get_close_matches(text, list(names), 3, cutoff=0))
