"""Weights from a file, by name, and public names turned into ours.

  arrays = weights.from_transformers(weights.read("model.safetensors"))  # google/vit-*, DINOv2
  weights.fill(model, weights.fit(arrays, model))

Names are paths of parameters, as in `blocks/0/attention/query_key_value/kernel`.
"""

import math
import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import jax.numpy as jnp
import numpy as np
import safetensors
from flax import nnx
from safetensors.numpy import load_file

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

# Arrays may take this many bytes, or so many times those of their file: trained weights shrink
# little, and a file of zeros that are unpacked into memory by the thousand is no file of weights.
_UNPACKED_BYTES, _UNPACKED_TIMES = 2**28, 20
# The header of an array as numpy writes it; the dtype is of booleans, integers or floats.
_HEADER = re.compile(
  rb"\{'descr': '[<>|=]?[biuf](\d{1,2})', 'fortran_order': (?:True|False),"
  rb" 'shape': \(((?:\d{1,18}, ?)*(?:\d{1,18})?)\), \} *\n?"
)
_HEADER_BYTES = 10_000  # of one, at most
_SAFETENSORS = re.compile(r"BOOL|[IU](8|16|32|64)|B?F16|F(32|64)")  # its names of such dtypes


def read(path: str | Path) -> dict[str, np.ndarray]:
  """Reads arrays from a file in numpy's format or, by its ending, in safetensors'.

  Nothing is unpickled. What the file says of its arrays is looked at before any of them is read.

  Raises:
    ValueError: there is no such file, it is damaged, holds other than arrays of numbers, or these
      are absurdly large for its size.
  """
  path = Path(path).expanduser()
  if not path.is_file():
    raise ValueError(f"{path}: no such file; scripts/fetch_*.py fetch weights")
  try:
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_npz(path)
  except (
    *(ValueError, OSError, RuntimeError, EOFError),
    *(zipfile.BadZipFile, zlib.error, safetensors.SafetensorError),
  ) as e:
    kind = "a .safetensors" if path.suffix == ".safetensors" else "an .npz"
    # One line, whatever the names in the file are.
    why = "".join(c if c.isprintable() else "?" for c in str(e).partition("\n")[0])
    raise ValueError(
      f"{path}: cannot be read as {kind} file of arrays: {why or 'it ends too early'}"
    ) from e


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
  # The library holds shapes and offsets against each other and the file.
  with safetensors.safe_open(path, "numpy") as file:
    names = file.keys()
    for name in names:
      kind = file.get_slice(name).get_dtype()
      if not _SAFETENSORS.fullmatch(kind):
        raise ValueError(f"{name} is of {kind}; use floats, integers or booleans")
  return load_file(path)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
  with zipfile.ZipFile(path) as archive:
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
      name = member.filename.removesuffix(".npy")
      if name in members:
        raise ValueError(f"{name} is there twice")
      members[name] = member
    unpacked, size = sum(m.file_size for m in members.values()), path.stat().st_size
    if unpacked > max(_UNPACKED_BYTES, _UNPACKED_TIMES * size):
      raise ValueError(f"{size:,} bytes that would become {unpacked:,}")
    for name, member in members.items():
      if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is neither stored nor deflated")
      if member.flag_bits & 1:
        raise ValueError(f"{name} is encrypted")
      with archive.open(member) as file:
        if _size_by_header(file) != member.file_size:
          raise ValueError(f"{name} is no array of numbers, or of another size than it says")
    arrays = {}
    for name, member in members.items():
      with archive.open(member) as file:
        arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
  return arrays


def _size_by_header(file: BinaryIO) -> int | None:
  """Bytes of a file in numpy's format, by its first ones; None: it is no array of numbers."""
  start = file.read(8)
  digits = {b"\x93NUMPY\x01\x00": 2, b"\x93NUMPY\x02\x00": 4}.get(start)
  if digits is None:
    return None
  length = int.from_bytes(file.read(digits), "little")
  match = _HEADER.fullmatch(file.read(length)) if length <= _HEADER_BYTES else None
  if match is None:
    return None
  shape = [int(n) for n in re.findall(rb"\d+", match[2])]
  return 8 + digits + length + math.prod(shape) * int(match[1])


def fill(module: nnx.Module, weights: Mapping[str, np.ndarray]) -> None:
  """Gives a module's parameters, in place, the values that a file has for them.

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
    ValueError: names that no such model has, two that mean the same, or a query, key or value
      without the other two.
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
      _put(ours, *_orient(new, np.asarray(array)))
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
  if np.ndim(weights["positions"]) != 3:
    raise ValueError(f"positions of shape {weights['positions'].shape}: they have three axes")
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
    joined = np.concatenate([found[p] for p in _FUSED], axis=-1)
    _put(fused, f"{head}/query_key_value/{tail}", joined)
  return fused


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
        raise ValueError(f"the weights lack {_some(missing)}, which other blocks have")
      array = np.stack([layers[layer] for layer in range(depth)])
      _put(stacked, f"{prefix}blocks/{name}", array)
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
        _put(flat, f"{match[1]}blocks/{layer}/{match[2]}", part)
    else:
      _put(flat, name, array)
  return flat


def _put(arrays: dict[str, np.ndarray], name: str, array: np.ndarray) -> None:
  """Adds an array; two that would come to have one name are an error."""
  if name in arrays:
    raise ValueError(f"{name} is there twice, under two names that mean the same")
  arrays[name] = array


def _some(names: Iterable[str], limit: int = 6) -> str:
  """The first few names and how many more there are."""
  names = list(names)
  more = f" and {len(names) - limit} more" if len(names) > limit else ""
  return ", ".join(names[:limit]) + more
