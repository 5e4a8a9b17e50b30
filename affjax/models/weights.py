"""Weights from a file, by name, and public names turned into ours.

  arrays = weights.from_transformers(weights.read("model.safetensors"))  # google/vit-*, DINOv2
  weights.fill(model, weights.fit(arrays, model))

Names are paths of parameters, as in `blocks/0/attention/query_key_value/kernel`.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from affjax.models import vit

# Names of `transformers`, with `blocks/N/` for what precedes them in a block -> ours. The first of
# two spellings is that of files, the second that of models in memory since version 5.
_TRANSFORMERS = (
  (r"embeddings\.cls_token", "class_token"),
  (r"embeddings\.position_embeddings", "positions"),
  (r"embeddings\.register_tokens", "register_tokens"),
  (r"embeddings\.patch_embeddings\.projection\.", "stem/dense/"),
  (r"(blocks/\d+/)(layernorm_before|norm1)\.", r"\1attention_norm/"),
  (r"(blocks/\d+/)attention\.(attention\.query|q_proj)\.", r"\1attention/query/"),
  (r"(blocks/\d+/)attention\.(attention\.key|k_proj)\.", r"\1attention/key/"),
  (r"(blocks/\d+/)attention\.(attention\.value|v_proj)\.", r"\1attention/value/"),
  (r"(blocks/\d+/)attention\.(output\.dense|o_proj)\.", r"\1attention/out/"),
  (r"(blocks/\d+/)layer_scale1\.lambda1", r"\1scales/attention"),
  (r"(blocks/\d+/)(layernorm_after|norm2)\.", r"\1mlp_norm/"),
  (r"(blocks/\d+/)(intermediate\.dense|mlp\.fc1)\.", r"\1mlp/expand/"),
  (r"(blocks/\d+/)(output\.dense|mlp\.fc2)\.", r"\1mlp/contract/"),
  (r"(blocks/\d+/)layer_scale2\.lambda1", r"\1scales/mlp"),
  (r"layernorm\.", "norm/"),
)
_PREFIX = re.compile(r"^(vit|dinov2|dinov2_with_registers)\.")  # of a model with a head
_BLOCK = re.compile(r"^(encoder\.layer|layers)\.(\d+)\.")
_NOT_OURS = re.compile(r"pooler\.|classifier\.|embeddings\.mask_token")  # what follows the tokens
_FUSED = ("query", "key", "value")


def read(path: str | Path) -> dict[str, np.ndarray]:
  """Reads arrays from a file in numpy's format or, by its ending, in safetensors'.

  Raises:
    ValueError: there is no such file.
  """
  path = Path(path).expanduser()
  if not path.is_file():
    raise ValueError(f"{path}: no such file; scripts/fetch_*.py fetch weights")
  if path.suffix == ".safetensors":
    from safetensors.numpy import load_file

    return load_file(path)
  with np.load(path) as file:
    return dict(file)


def fill(module: nnx.Module, weights: Mapping[str, np.ndarray]) -> None:
  """Gives a module's parameters, in place, the values that a file has for them.

  Args:
    module: its parameters are named by their path, as in `blocks/0/pointwise/kernel`.
    weights: name -> value; what the module does not have is left out.

  Raises:
    ValueError: a parameter has no value, or one of another shape.
  """
  for name, parameter in _parameters(module).items():
    if name not in weights:
      raise ValueError(f"parameter {name} is not in the file")
    if weights[name].shape != parameter[...].shape:
      raise ValueError(
        f"parameter {name} is {parameter[...].shape}, in the file {weights[name].shape}"
      )
    parameter[...] = jnp.asarray(weights[name], parameter[...].dtype)


def of_transformers(names: Iterable[str]) -> bool:
  """Whether arrays have the names of a ViT of `transformers`."""
  return any("embeddings.patch_embeddings.projection." in name for name in names)


def from_transformers(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Weights of `transformers`' ViT and DINOv2, with or without registers, as those of `vit.ViT`.

  They mean the same only in a model that is built as theirs was: `class_token=True, gelu="exact"`
  and the patch stem; for ViTModel (google/vit-*: Dosovitskiy et al., 2021, arXiv:2010.11929)
  `norm_epsilon=1e-12`; for DINOv2 (Oquab et al., 2023, arXiv:2304.07193) `layer_scale=1.0`, and
  `registers=4` where they have them (Darcet et al., 2023, arXiv:2309.16588). The state has neither
  the epsilon nor the number of heads. Heads, poolers and mask tokens are left out.

  Args:
    arrays: the state of a model, as a file of the library or `state_dict()` names it.

  Returns:
    Name -> array, blocks one by one; `fit` makes them fit a model.

  Raises:
    ValueError: names that no such model has, or a query, key or value without the other two.
  """
  ours, unknown = {}, []
  for name, array in arrays.items():
    bare = _PREFIX.sub("", name)
    if _NOT_OURS.match(bare):
      continue
    new = _rename(_BLOCK.sub(r"blocks/\2/", bare))
    if new is None:
      unknown.append(name)
    else:
      ours.update([_orient(new, np.asarray(array))])
  if unknown:
    raise ValueError(
      f"{_some(unknown)}: no parameters of a ViT or DINOv2 of transformers; take them out if the"
      " model can do without them"
    )
  return _fuse(ours)


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
    both = [f"the weights lack {_some(missing)}"] * bool(missing)
    both += [f"the model lacks {_some(left)}"] * bool(left)
    raise ValueError(
      f"{'; '.join(both)}: build the model with the depth, stem, class_token, registers and"
      " layer_scale of the weights"
    )
  side = model.image_size // model.patch_size
  class_token = model.class_token is not None
  positions = vit.resize_positions(weights["positions"], (side, side), class_token=class_token)
  return weights | {"positions": np.asarray(positions)}


def _parameters(module: nnx.Module) -> dict[str, nnx.Param]:
  flat = nnx.to_flat_state(nnx.state(module, nnx.Param))
  return {"/".join(map(str, path)): parameter for path, parameter in flat}


def _rename(name: str) -> str | None:
  for theirs, ours in _TRANSFORMERS:
    end = r"(weight|bias)" if theirs.endswith(r"\.") else ""
    match = re.fullmatch(theirs + end, name)
    if match:
      return match.expand(ours) + (match[match.re.groups] if end else "")
  return None


def _orient(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
  """Outputs last, and a convolution's inputs in the order of `vit.PatchStem`: row, column, channel.

  What torch calls a weight is a kernel here, or the scale of a norm.
  """
  if not name.endswith("/weight"):
    return name, array
  name = name.removesuffix("weight")
  if array.ndim == 1:
    return f"{name}scale", array
  if array.ndim == 4:
    array = array.transpose(2, 3, 1, 0)
    return f"{name}kernel", array.reshape(-1, array.shape[-1])
  return f"{name}kernel", array.T


def _fuse(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Puts queries, keys and values in one matrix, in this order."""
  fused, parts = {}, {}
  for name, array in weights.items():
    head, _, tail = name.rpartition("/")
    head, _, part = head.rpartition("/")
    if part in _FUSED:
      parts.setdefault((head, tail), {})[part] = array
    else:
      fused[name] = array
  for (head, tail), found in parts.items():
    missing = [part for part in _FUSED if part not in found]
    if missing:
      raise ValueError(
        f"{head}: no {tail} of {', '.join(missing)} beside that of {', '.join(found)}"
      )
    fused[f"{head}/query_key_value/{tail}"] = np.concatenate([found[p] for p in _FUSED], axis=-1)
  return fused


def stack(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """`blocks/0/x`, `blocks/1/x`, ... -> `blocks/x`, with the layer as first axis, as `scan` has it.

  Raises:
    ValueError: a block lacks what another has.
  """
  stacked, parts = {}, {}
  for name, array in weights.items():
    if match := re.fullmatch(r"(|.*/)blocks/(\d+)/(.+)", name):
      parts.setdefault(match[1], {}).setdefault(match[3], {})[int(match[2])] = array
    else:
      stacked[name] = array
  for prefix, names in parts.items():
    depth = max(map(len, names.values()))
    for name, layers in names.items():
      missing = [f"{prefix}blocks/{layer}/{name}" for layer in range(depth) if layer not in layers]
      if missing:
        raise ValueError(f"the weights lack {_some(missing)}, which other blocks have")
      stacked[f"{prefix}blocks/{name}"] = np.stack([layers[layer] for layer in range(depth)])
  return stacked


def unstack(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """What `stack` made, as it was before; blocks that are not stacked stay as they are."""
  flat = {}
  for name, array in weights.items():
    if match := re.fullmatch(r"(|.*/)blocks/(\D.*)", name):
      flat |= {f"{match[1]}blocks/{layer}/{match[2]}": part for layer, part in enumerate(array)}
    else:
      flat[name] = array
  return flat


def _some(names: Iterable[str], limit: int = 6) -> str:
  """The first few names and how many more there are."""
  names = list(names)
  more = f" and {len(names) - limit} more" if len(names) > limit else ""
  return ", ".join(names[:limit]) + more
