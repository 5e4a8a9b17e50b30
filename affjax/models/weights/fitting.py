"""Arrays by name, made to fit a model."""

import re
from collections.abc import Iterable, Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx

from affjax.models import convolutions, vit


def fill(module: nnx.Module, weights: Mapping[str, np.ndarray]) -> None:
  """Gives a module's parameters and statistics, in place, the values that a file has for them.

  Args:
    module: its parameters are named by their path, as in `blocks/0/pointwise/kernel`.
    weights: name -> value; what the module does not have is left out.

  Raises:
    ValueError: a parameter has no value, or one of another shape.
  """
  parameters = _parameters(module)
  for name, parameter in parameters.items():
    if name not in weights:
      raise ValueError(f"parameter {name} is not in the file")
    if weights[name].shape != parameter[...].shape:
      raise ValueError(
        f"parameter {name} is {parameter[...].shape}, in the file {weights[name].shape}"
      )
  for name, parameter in parameters.items():
    parameter[...] = jnp.asarray(weights[name], parameter[...].dtype)


def fit(weights: Mapping[str, np.ndarray], model: vit.ViT) -> dict[str, np.ndarray]:
  """Weights of a `vit.ViT` for one of another grid of patches, or with `scan` where they had none.

  Args:
    weights: name -> array, blocks one by one or stacked.
    model: what they are for; it is not changed.

  Returns:
    The model's names -> arrays: positions resized (`vit.resize_positions`), blocks stacked or not.

  Raises:
    ValueError: the model has parameters that the weights lack, or the other way round.
  """
  weights = stack(unstack(weights)) if model.scan else unstack(weights)
  names = _parameters(model).keys()
  missing, left = sorted(names - weights.keys()), sorted(weights.keys() - names)
  if missing or left:
    both = [f"the weights lack {some(missing)}"] * bool(missing)
    both += [f"the model lacks {some(left)}"] * bool(left)
    raise ValueError(
      f"{'; '.join(both)}: build the model with the depth, stem, class_token, registers and"
      " layer_scale of the weights"
    )
  if np.ndim(weights["positions"]) != 3:
    raise ValueError(f"positions of shape {weights['positions'].shape}: they have three axes")
  side = model.image_size // model.patch_size
  class_token = model.class_token is not None
  positions = vit.resize_positions(weights["positions"], (side, side), class_token=class_token)
  return weights | {"positions": np.asarray(positions)}


def stack(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """`blocks/0/x`, `blocks/1/x`, ... -> `blocks/x`, with the layer as first axis, as `scan` has it.

  Raises:
    ValueError: a block lacks what another has, or blocks are there both ways.
  """
  stacked, parts = {}, {}
  for name, array in weights.items():
    if match := re.fullmatch(r"(|.*/)blocks/(0|[1-9][0-9]*)/(.+)", name):
      parts.setdefault(match[1], {}).setdefault(match[3], {})[int(match[2])] = array
    else:
      stacked[name] = array
  for prefix, names in parts.items():
    depth = max(map(len, names.values()))
    for name, layers in names.items():
      missing = [f"{prefix}blocks/{layer}/{name}" for layer in range(depth) if layer not in layers]
      if missing:
        raise ValueError(f"the weights lack {some(missing)}, which other blocks have")
      array = np.stack([layers[layer] for layer in range(depth)])
      put(stacked, f"{prefix}blocks/{name}", array)
  return stacked


def unstack(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """What `stack` made, as it was before; blocks that are not stacked stay as they are.

  Raises:
    ValueError: blocks are there both ways.
  """
  flat = {}
  for name, array in weights.items():
    if (match := re.fullmatch(r"(|.*/)blocks/(\D.*)", name)) and np.ndim(array):
      for layer, part in enumerate(array):
        put(flat, f"{match[1]}blocks/{layer}/{match[2]}", part)
    else:
      put(flat, name, array)
  return flat


def fold(
  weights: Mapping[str, np.ndarray], epsilon: float = convolutions.EPSILON
) -> dict[str, np.ndarray]:
  """Batch norms of `convolutions.Convolution` folded into kernel and bias, as norm "none" has it.

  Args:
    weights: name -> array.
    epsilon: of the norms, which is not in the weights; encoders whose own is another have it as
      attribute, see `resnet.ResNet`.

  Raises:
    ValueError: a norm lacks a part.
  """
  folded = dict(weights)
  for name in weights:
    layer = name.removesuffix("/norm/mean")
    if layer == name or f"{layer}/kernel" not in weights:
      continue
    parts = [
      f"{layer}/{part}" for part in ("norm/scale", "norm/mean", "norm/var", "kernel", "bias")
    ]
    if missing := [part for part in parts if part not in weights]:
      raise ValueError(f"the weights lack {some(missing)} beside {name}")
    scale, mean, var, kernel, bias = (np.asarray(weights[part], np.float64) for part in parts)
    factor = scale / np.sqrt(var + epsilon)
    folded[f"{layer}/kernel"] = (kernel * factor).astype(np.float32)
    folded[f"{layer}/bias"] = (bias - mean * factor).astype(np.float32)
    for part in parts[:3]:
      del folded[part]
  return folded


def put(arrays: dict[str, np.ndarray], name: str, array: np.ndarray) -> None:
  """Adds an array; two that would come to have one name are an error."""
  if name in arrays:
    raise ValueError(f"{name} is there twice, under two names that mean the same")
  arrays[name] = array


def some(names: Iterable[str], limit: int = 6) -> str:
  """The first few names and how many more there are."""
  names = list(names)
  more = f" and {len(names) - limit} more" if len(names) > limit else ""
  return ", ".join(names[:limit]) + more


def _parameters(module: nnx.Module) -> dict[str, nnx.Variable]:
  flat = nnx.to_flat_state(nnx.state(module, (nnx.Param, nnx.BatchStat)))
  return {"/".join(map(str, path)): parameter for path, parameter in flat}
