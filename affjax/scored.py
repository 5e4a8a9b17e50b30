"""What a model gave for rows of a split, beside their labels: confusions, groups, worst errors."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from scipy import special

from affjax import evaluate, experiment
from affjax.data import records

WORST = 8  # errors of each task that are told
_YARDSTICKS = {"floor": "floors", "ceiling": "ceilings", "probe": "probes"}


@dataclasses.dataclass(frozen=True)
class Scored:
  """A split as it was scored, and rows of it, evenly spaced.

  Attributes:
    name: of the split.
    columns: "score", "floor", "ceiling" and "probe" -> name -> value.
    scoring: what is scored.
    total: rows of the split.
    broken: rows that would be here, had the model given finite numbers for them.
    index: [rows] their numbers.
    outputs: task -> [rows, size] what the model gave: `va` values, the others logits.
    labels: task -> likewise.
    mask: task (and rule of the expression) -> [rows, size], [rows].
  """

  name: str
  columns: Mapping[str, Mapping[str, float]]
  scoring: evaluate.Scoring
  total: int
  broken: int
  index: np.ndarray
  outputs: Mapping[str, np.ndarray]
  labels: Mapping[str, np.ndarray]
  mask: Mapping[str, np.ndarray]

  @classmethod
  def of(
    cls,
    name: str,
    data: experiment.Data,
    result: Mapping[str, Any],
    rows: evaluate.Outputs,
  ) -> "Scored":
    """From what `evaluate.score` returned and filled."""
    given = [values for task, values in rows.items() if task != "index"]
    finite = np.all([np.isfinite(values).all(1) for values in given], axis=0)
    rows = {task: values[finite] for task, values in rows.items()}
    labels, mask = jax.tree.map(lambda x: x[rows["index"]], data.seen(name))
    yardsticks = {kind: result.get(key, {}).get(name, {}) for kind, key in _YARDSTICKS.items()}
    return cls(
      name,
      {"score": result["scores"][name], **yardsticks},
      evaluate.Scoring.of(data.labels, records.metadata(data.build)),
      len(data.table(name)["key"]),
      int((~finite).sum()),
      rows["index"],
      {task: values for task, values in rows.items() if task != "index"},
      labels,
      mask,
    )

  def names(self, task: str) -> Sequence[str]:
    """What of a task is scored."""
    return self.scoring.names_of(task)

  def taken(self, task: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Outputs, labels and mask of what is scored of `va` or `au`: [rows, size] each."""
    of = [list(self.scoring.labels[task]).index(name) for name in self.names(task)]
    return tuple(x[task][:, of] for x in (self.outputs, self.labels, self.mask))

  @functools.cached_property
  def probability(self) -> np.ndarray:
    """[rows, classes] of the expressions that are scored."""
    of = [list(self.scoring.labels["expression"]).index(n) for n in self.names("expression")]
    return special.softmax(self.outputs["expression"][:, of].astype(np.float64), 1)

  @functools.cached_property
  def annotated(self) -> np.ndarray:
    """[rows] number of the annotated expression among those that are scored, -1 for none."""
    known = list(self.scoring.labels["expression"])
    place = np.full(len(known), -1)
    place[[known.index(n) for n in self.names("expression")]] = range(len(self.names("expression")))
    return place[self.labels["expression"].argmax(1)]

  @property
  def rules(self) -> dict[str, np.ndarray]:
    """Rule, as in the names of scores, -> [rows] whether a row has an expression by it."""
    if not self.labelled("expression"):
      return {}
    names = {f"expression/{rule}": f"expression_{rule}" for rule in self.scoring.rules}
    names = names or {"expression": "expression"}
    return {rule: (self.mask[n] > 0) & (self.annotated >= 0) for rule, n in names.items()}

  def labelled(self, task: str) -> bool:
    """Whether any of the rows can be compared to a label."""
    there = task in self.outputs and task in self.mask and len(self.names(task)) > 0
    return there and bool(self.mask[task].any())


def confusion(split: Scored, rows: np.ndarray) -> np.ndarray:
  """[target class, predicted class] counts of some [rows] of a split."""
  size = len(split.names("expression"))
  counts = np.zeros((size, size), np.int64)
  np.add.at(counts, (split.annotated[rows], split.probability[rows].argmax(1)), 1)
  return counts


def group_scores(split: Scored, rows: np.ndarray) -> dict[str, float]:
  """Scores of some rows of a split, of those that a few hundred rows tell.

  Args:
    split: of the rows.
    rows: [rows] bool.

  Returns:
    Any of "CCC, mean of valence and arousal", "accuracy of expressions" (by the first rule) and
    "F1 of all units together", as far as the rows have labels.
  """
  found = {}
  if split.labelled("va"):
    given, label, mask = (x[rows].astype(np.float64) for x in split.taken("va"))
    if (mask.sum(0) > 1).all():
      each = [_ccc(*x[:, x[2] > 0][:2]) for x in np.stack([given, label, mask]).transpose(2, 0, 1)]
      found["CCC, mean of valence and arousal"] = float(np.mean(each))
  if split.rules and (known := next(iter(split.rules.values())) & rows).any():
    counts = confusion(split, known)
    found["accuracy of expressions"] = counts.trace() / counts.sum()
  if split.labelled("au"):
    logits, label, mask = (x[rows] for x in split.taken("au"))
    on, there = logits[mask > 0] >= 0, label[mask > 0] > 0
    if (on | there).any():
      found["F1 of all units together"] = 2 * (on & there).sum() / (on.sum() + there.sum())
  return found


def _ccc(given: np.ndarray, label: np.ndarray) -> float:
  both = given.var() + label.var() + (given.mean() - label.mean()) ** 2
  return float(2 * np.cov(given, label, bias=True)[0, 1] / both) if both else 0.0


def row_scores(split: Scored) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Name -> [rows] a score of each row, and [rows] whether it has one."""
  found = {}
  if split.labelled("va"):
    given, label, mask = split.taken("va")
    known = mask.any(1)
    off = (np.abs(given - label) * mask).sum(1) / np.maximum(mask.sum(1), 1)
    found["mean distance from annotated valence and arousal"] = (off, known)
  for rule, known in split.rules.items():
    right = split.probability.argmax(1) == split.annotated
    found[f"share of right answers, {rule}"] = (right.astype(float), known)
  if split.labelled("au"):
    logits, label, mask = split.taken("au")
    right = ((logits >= 0) == (label > 0)) * mask
    found["share of right units"] = (right.sum(1) / np.maximum(mask.sum(1), 1), mask.any(1))
  return found


def worst(split: Scored) -> dict[str, tuple[np.ndarray, list[str]]]:
  """Task -> at most WORST rows (places in `split.index`), the worst first, and what to say of each.

  Of valence and arousal the farthest from the label; of expressions those that were most surely
  taken for another; of units those with the largest cross-entropy.
  """
  found = {}
  if split.labelled("va"):
    given, label, mask = split.taken("va")
    off = np.linalg.norm((given - label) * mask, axis=1)
    said = lambda values: " ".join(
      f"{name[0].upper()} {value:+.1f}"
      for name, value in zip(split.names("va"), values, strict=True)
    )
    rows = _largest(off)
    found["va"] = (rows, [f"true {said(label[i])}\nsaid {said(given[i])}" for i in rows])
  for known in list(split.rules.values())[:1]:
    best = split.probability.argmax(1)
    surely = split.probability.max(1) * (known & (best != split.annotated))
    rows, names = _largest(surely), split.names("expression")
    said = [
      f"true {names[split.annotated[i]]}\nsaid {names[best[i]]} {split.probability[i].max():.0%}"
      for i in rows
    ]
    found["expression"] = (rows, said)
  if split.labelled("au"):
    logits, label, mask = split.taken("au")
    entropy = np.logaddexp(0, np.where(label > 0, -logits, logits)) * mask
    on, there = (logits >= 0) & (mask > 0), (label > 0) & (mask > 0)
    units = lambda row: (
      " ".join(n.removeprefix("AU") for n in np.array(split.names("au"))[row]) or "-"
    )
    rows = _largest(entropy.sum(1) / np.maximum(mask.sum(1), 1))
    said = [f"missed {units(there[i] & ~on[i])}\ntoo many {units(on[i] & ~there[i])}" for i in rows]
    found["au"] = (rows, said)
  return {task: of for task, of in found.items() if len(of[0])}


def _largest(values: np.ndarray) -> np.ndarray:
  """Places of the WORST largest values above 0, the largest first."""
  order = np.argsort(-values, kind="stable")[:WORST]
  return order[values[order] > 0]
