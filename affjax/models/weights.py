"""Weights from a file, by name."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx


def read(path: str | Path) -> dict[str, np.ndarray]:
  """Reads arrays from a file in numpy's format.

  Raises:
    ValueError: there is no such file.
  """
  path = Path(path).expanduser()
  if not path.is_file():
    raise ValueError(f"{path}: no such file; scripts/fetch_*.py fetch weights")
  with np.load(path) as file:
    return dict(file)


def fill(module: nnx.Module, weights: dict[str, np.ndarray]) -> None:
  """Gives a module's parameters, in place, the values that a file has for them.

  Args:
    module: its parameters are named by their path, as in `blocks/0/pointwise/kernel`.
    weights: name -> value; what the module does not have is left out.

  Raises:
    ValueError: a parameter has no value, or one of another shape.
  """
  for path, parameter in nnx.to_flat_state(nnx.state(module, nnx.Param)):
    name = "/".join(map(str, path))
    if name not in weights:
      raise ValueError(f"parameter {name} is not in the file")
    if weights[name].shape != parameter[...].shape:
      raise ValueError(
        f"parameter {name} is {parameter[...].shape}, in the file {weights[name].shape}"
      )
    parameter[...] = jnp.asarray(weights[name], parameter[...].dtype)
