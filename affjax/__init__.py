"""Facial affect in JAX: `affjax.load(workdir).predict(images)`."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from affjax.inference import Predictor

__version__ = "0.1.0"


def load(workdir: str, checkpoint: str = "best") -> "Predictor":
  """Opens a run for prediction.

  Args:
    workdir: the folder that `affjax.main` trained in.
    checkpoint: "best" by the run's metric, "latest", or a step.

  Returns:
    An `affjax.inference.Predictor`: `predict(images)` gives named outputs.

  Raises:
    ValueError: no run, or no such checkpoint, there.
  """
  from affjax.inference import load  # imports jax, which takes seconds

  return load(workdir, checkpoint)
