"""The progress bar of every build: TFDS's own know no total, so they show no time left."""

from collections.abc import Collection
from typing import Any

import tqdm


def bar(over: Collection[Any], what: str, unit: str = "images") -> tqdm.tqdm:
  """A bar on stderr with speed and time left, shown once a second has passed.

  Args:
    over: all that is to be done: iterate the bar, or `update` it.
    what: is done, e.g. `rendering train`.
    unit: what the things are, in the plural.
  """
  return tqdm.tqdm(over, what, unit=f" {unit}", delay=1)
