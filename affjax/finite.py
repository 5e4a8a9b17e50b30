"""Losses and gradients that are not finite: said, with what is known of where they come from."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from affjax import experiment
from affjax.state import TrainState

CHOICES = ("stop", "skip")
ROWS = 8  # of a batch that are named


def choice(config: Mapping[str, Any]) -> str:
  """`config.nonfinite`, which the configs of earlier runs lack.

  Raises:
    ValueError: no such choice.
  """
  chosen = config.get("nonfinite", CHOICES[0])
  if chosen not in CHOICES:
    raise ValueError(f"config.nonfinite={chosen!r}: use one of {', '.join(CHOICES)}")
  return chosen


def found(metrics: Mapping[str, Any]) -> dict[str, float]:
  """The losses and the norm of the gradient, if loss or gradient are not finite.

  Args:
    metrics: of a step.

  Returns:
    Name -> value; empty where loss and gradient are finite.
  """
  made_of = jax.device_get([metrics["loss"], metrics["gradient_norm"]])
  if np.isfinite(made_of).all():
    return {}
  names = [n for n in metrics if n.startswith("loss") or n == "gradient_norm"]
  return {name: float(metrics[name]) for name in names}


def explain(
  values: Mapping[str, float],
  step: int,
  config: Mapping[str, Any],
  data: experiment.Data,
  procedure: Any,
  state: TrainState | None,
) -> str:
  """Names step, tasks and rows of an update that is not finite.

  Args:
    values: from `found`.
    step: the update's number, from 1 on.
    config: of the run.
    data: of the run.
    procedure: of the run.
    state: from before that update; None: all rows are named.
  """
  wrong = [f"{name} {value}" for name, value in values.items() if not math.isfinite(value)]
  rows = np.asarray(experiment.order(config, data)[step - 1])
  some, why = rows.reshape(-1), "it had"
  if state is not None:
    batch = data.training.batch(rows)
    present = (batch["index"] >= 0,) if rows.ndim == 2 else ()
    outputs = jax.jit(procedure.predict)(state.params, state.model_state, batch["image"], *present)
    for what, tree in (("labels", batch["labels"]), ("outputs", outputs)):
      fine = [np.isfinite(x).reshape(rows.size, -1).all(1) for x in jax.tree.leaves(tree)]
      if not (whole := np.logical_and.reduce(fine)).all():
        some, why = some[~whole], f"of its {rows.size} rows these have {what} that are not finite:"
        break
  some = [row for row in dict.fromkeys(some.tolist()) if row >= 0]  # clips overlap and have gaps
  keys = data.keys
  named = ", ".join(f"{row} ({keys[row]})" for row in some[:ROWS])
  more = f" and {len(some) - ROWS} more" if len(some) > ROWS else ""
  return f"update {step} is not finite ({', '.join(wrong)}); {why} rows {named}{more}"
