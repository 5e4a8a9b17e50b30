"""Labels as annotators would have left them: noise and missing tasks, put on when labels are read.

Records keep the truth; a view is a pure function of a split's label table. What it does to a row
depends on the row's key (of a mask: its person) and on the names of the labels alone, never on the
order or the size of the split, on the machine or on the version of a library. Noise and masks are
drawn independently, and `wild` errs wherever `mild` does.

Rates and tables are those of this project's label model. `wild` is near one crowd annotator: two
annotators of AffectNet differ by .34 in valence and .36 in arousal (root mean square) and agree on
the expression of 61 % of its faces (Mollahosseini et al., 2017, arXiv:1708.03985; numbers RECALLed,
not checked).
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

Table = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Noise:
  """How often and how far annotators are wrong.

  Attributes:
    valence: standard deviation of the error; the sum is clipped to [-1, 1].
    arousal: likewise.
    missed: probability that a unit that is on is labelled off.
    false: probability that a unit that is off is labelled on.
    expression: probability that another expression is named, see CONFUSED.
  """

  valence: float = 0.0
  arousal: float = 0.0
  missed: float = 0.0
  false: float = 0.0
  expression: float = 0.0


NOISE = {
  "clean": Noise(),
  "mild": Noise(valence=0.08, arousal=0.12, missed=0.05, false=0.01, expression=0.05),
  "wild": Noise(valence=0.20, arousal=0.25, missed=0.20, false=0.03, expression=0.25),
}


def read_noise(noise: str) -> Noise:
  """A noise by its name, or by what of it is not 0: "valence=0.3,expression=0.5".

  Raises:
    ValueError: an unknown name or attribute, or a value that it cannot have.
  """
  if noise in NOISE:
    return NOISE[noise]
  try:
    given = {name: float(value) for name, value in (part.split("=") for part in noise.split(","))}
    read = Noise(**given)
  except (TypeError, ValueError):
    read = None
  rates = ("missed", "false", "expression")
  if read is None or not all(0 <= x <= (1 if n in rates else 2) for n, x in given.items()):
    raise ValueError(
      f"config.data.view.noise={noise!r}: use one of {', '.join(NOISE)}, or deviations and rates"
      " >= 0 such as 'valence=0.3,arousal=0.1,missed=0.2,false=0.1,expression=0.5'"
    )
  return read


# Expression -> what it is taken for by who errs: this project's judgement. Classes without a row
# are never mistaken.
CONFUSED = {
  "neutral": {"other": 0.6, "sadness": 0.3, "happiness": 0.1},
  "anger": {"disgust": 0.4, "other": 0.4, "neutral": 0.2},
  "disgust": {"anger": 0.5, "other": 0.4, "sadness": 0.1},
  "fear": {"surprise": 0.6, "sadness": 0.2, "other": 0.2},
  "happiness": {"other": 0.7, "neutral": 0.2, "surprise": 0.1},
  "sadness": {"other": 0.5, "neutral": 0.4, "fear": 0.1},
  "surprise": {"other": 0.4, "fear": 0.3, "happiness": 0.3},
  "other": {"neutral": 0.6, "happiness": 0.2, "sadness": 0.2},
}

# Masks -> role of a split -> which tasks are labelled together, and of what share of the people.
# s-Aff-Wild2 publishes the share of each task and of all three together (Kollias, 2022,
# arXiv:2202.10659); the pairs are INFERRED so that these come out: training .730 valence-arousal,
# .637 expression, .726 units (here .725). There whole videos lack a task, so here whole people do.
MASKS: dict[str, dict[str, dict[tuple[str, ...], float]]] = {
  "none": {},
  "s_aff_wild2": {
    "train": {
      ("va", "expression", "au"): 0.366,
      ("va", "au"): 0.300,
      ("expression",): 0.211,
      ("va", "expression"): 0.032,
      ("va",): 0.032,
      ("au",): 0.031,
      ("expression", "au"): 0.028,
    },
    "validation": {("va", "expression", "au"): 0.574, ("va", "au"): 0.426},
  },
}


@dataclasses.dataclass(frozen=True)
class View:
  """What noise and which missing tasks a split is read with; false where it changes nothing.

  Attributes:
    noise: of NOISE, or what `read_noise` reads: errors in one task's labels alone, for example.
    masks: of MASKS.
    role: what the split is used for, "train" or "validation"; a role without a table has no masks.

  Raises:
    ValueError: an unknown noise or unknown masks.
  """

  noise: str = "clean"
  masks: str = "none"
  role: str = "train"

  def __post_init__(self) -> None:
    read_noise(self.noise)
    if self.masks not in MASKS:
      raise ValueError(f"config.data.view.masks={self.masks!r}: use one of {', '.join(MASKS)}")

  def __bool__(self) -> bool:
    return self.noise != "clean" or self.role in MASKS[self.masks]

  def __str__(self) -> str:
    parts = [f"noise {self.noise}"] * (self.noise != "clean")
    parts += [f"masks {self.masks}/{self.role}"] * (self.role in MASKS[self.masks])
    return ", ".join(parts) or "labels as they are"

  def __call__(self, table: Table, names: Mapping[str, Sequence[str]]) -> Table:
    """Applies the view to a split's labels; `table` itself is left alone.

    Args:
      table: see `records.label_table`.
      names: task -> the data set's names of its labels.

    Returns:
      A table of the same columns and dtypes; `table` itself where nothing is to be done.
    """
    if not self:
      return table
    viewed = dict(table)
    if self.noise != "clean":
      viewed |= _noisy(table, names, read_noise(self.noise))
    if shares := MASKS[self.masks].get(self.role):
      viewed |= _masked(table, shares)
    return viewed


CLEAN = View()


def _noisy(table: Table, names: Mapping[str, Sequence[str]], noise: Noise) -> dict[str, np.ndarray]:
  """The columns of labels, with errors; each label's are drawn by its name."""
  seeds = _seeds(table["key"])
  out = {f"labels/{task}": table[f"labels/{task}"].copy() for task in names}
  for column, name in enumerate(names.get("va", ())):
    deviation = {"valence": noise.valence, "arousal": noise.arousal}.get(name, 0.0)
    values = out["labels/va"][:, column]
    values[:] = np.clip(values + deviation * _normal(seeds, name), -1, 1)
  for column, name in enumerate(names.get("au", ())):
    values = out["labels/au"][:, column]
    wrong = _uniform(seeds, name) < np.where(values > 0, noise.missed, noise.false)
    values[wrong] = 1 - values[wrong]
  if "expression" in names:
    wrong = _uniform(seeds, "expression wrong") < noise.expression
    _confuse(out["labels/expression"], names["expression"], wrong, _uniform(seeds, "expression"))
  return out


def _confuse(label: np.ndarray, names: Sequence[str], wrong: np.ndarray, draw: np.ndarray) -> None:
  """Moves the mass of the most probable class, in place, to one that it is taken for.

  Of a one-hot label that makes another one-hot; of votes, the winner's go to another class. Classes
  that the data set lacks are not named: the others of the row take their share.

  Args:
    label: [rows, classes] distributions.
    names: of the classes.
    wrong: [rows] whether the row is mistaken.
    draw: [rows] in [0, 1), says for which class.
  """
  best = label.argmax(1)
  for source, name in enumerate(names):
    shares = {names.index(to): p for to, p in CONFUSED.get(name, {}).items() if to in names}
    if shares:
      rows = np.flatnonzero(wrong & (best == source))
      target = np.array(list(shares))[_choose(list(shares.values()), draw[rows])]
      label[rows, target] += label[rows, source]
      label[rows, source] = 0


def _masked(table: Table, shares: Mapping[tuple[str, ...], float]) -> dict[str, np.ndarray]:
  """The columns of masks, with tasks missing from all rows of a person (else: from the row)."""
  people = table.get("person", table["key"])
  people = np.where(people == b"", table["key"], people)
  drawn = _choose(list(shares.values()), _uniform(_seeds(people), "masks"))
  out = {}
  for column in (name for name in table if name.startswith("mask/")):
    task = column.removeprefix("mask/").partition("_")[0]  # of expression_strict: expression
    has = np.array([task in together for together in shares], table[column].dtype)[drawn]
    out[column] = table[column] * has[:, None]
  return out


def _choose(shares: Sequence[float], draw: np.ndarray) -> np.ndarray:
  """[rows] draws in [0, 1) -> [rows] which of the shares each falls in."""
  edges = np.cumsum(shares)
  return np.searchsorted(edges[:-1], draw * edges[-1], side="right")


def _hash(name: bytes) -> int:
  return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")


def _seeds(keys: np.ndarray) -> np.ndarray:
  """[rows] bytes -> [rows] uint64."""
  return np.array([_hash(key) for key in keys.tolist()], np.uint64)


def _uniform(seeds: np.ndarray, what: str) -> np.ndarray:
  """[rows] float64 in [0, 1), independent for each seed and each `what`.

  The finaliser of SplitMix64 (Steele, Lea & Flood, 2014): integers alone, so that every machine
  draws the same bits, and a generator for each row would take a hundred times as long.
  """
  x = seeds ^ np.uint64(_hash(what.encode()))
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB
  return ((x ^ (x >> 31)) >> 11) * 2.0**-53


def _normal(seeds: np.ndarray, what: str) -> np.ndarray:
  """[rows] float64, mean 0 and variance 1: the sum of twelve uniform draws.

  Its tails end at 6 and its kurtosis is .1 less than the normal's, but unlike a logarithm a sum has
  the same bits everywhere.
  """
  return sum(_uniform(seeds, f"{what} {i}") for i in range(12)) - 6.0
