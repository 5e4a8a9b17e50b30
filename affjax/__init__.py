"""Facial affect in JAX: `affjax.load(workdir).predict(images)`."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from affjax.inference import Predictor

__version__ = "0.1.0"


def load(
  where: str, checkpoint: str = "best", *, weights: str = "ema", settings: str | None = None
) -> "Predictor":
  """Opens a run, or an export of one, for prediction.

  Args:
    where: the folder that `affjax.main` trained in, or that `affjax.export` wrote.
    checkpoint: of a run, "best" by its metric, "latest", or a step.
    weights: of a run, "ema" (the moving average, where one is kept) or "raw".
    settings: file of `affjax.calibrate`: how expressions and units are decided on; None: those of
      the export, else the most probable expression, and units from probability 0.5 on.

  Returns:
    An `affjax.inference.Predictor`: `predict(images)` gives named outputs.

  Raises:
    ValueError: no run, or no such checkpoint, there.
  """
  from affjax.inference import load  # imports jax, which takes seconds

  return load(where, checkpoint, weights=weights, settings=settings)
