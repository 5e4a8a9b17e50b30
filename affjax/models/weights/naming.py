"""Public names turned into ours: tables, one for each way in which others name their arrays.

What comes out means the same only in an encoder that is built as theirs was: `Public.encoder` says
how, as a section of a config.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from affjax.models import efficientnet
from affjax.models.weights import torchvision
from affjax.models.weights.fitting import put, some, unstack
from affjax.models.weights.tables import Arrays, Table, translated

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
_OF_TRANSFORMERS = re.compile(r"^(vit|dinov2|dinov2_with_registers)\.")  # of a model with a head
# What follows the tokens, and what trained them.
_BESIDE_TRANSFORMERS = re.compile(r"pooler\.|classifier\.|decoder\.|embeddings\.mask_token")

# Names of timm, which MAE, DINO and DINOv2 took over -> ours. The last writes a block as
# `blocks.CHUNK.N`, where others have `blocks.N`.
_TIMM = (
  (r"cls_token", "class_token"),
  (r"pos_embed", "positions"),
  (r"reg_token|register_tokens", "register_tokens"),
  (r"patch_embed\.proj\.", "stem/dense/"),
  (r"(blocks/\d+/)norm1\.", r"\1attention_norm/"),
  (r"(blocks/\d+/)attn\.qkv\.", r"\1attention/query_key_value/"),
  (r"(blocks/\d+/)attn\.proj\.", r"\1attention/out/"),
  (r"(blocks/\d+/)ls1\.gamma", r"\1scales/attention"),
  (r"(blocks/\d+/)norm2\.", r"\1mlp_norm/"),
  (r"(blocks/\d+/)mlp\.fc1\.", r"\1mlp/expand/"),
  (r"(blocks/\d+/)mlp\.fc2\.", r"\1mlp/contract/"),
  (r"(blocks/\d+/)ls2\.gamma", r"\1scales/mlp"),
  (r"norm\.", "norm/"),
)
_BESIDE_TIMM = re.compile(r"head(_drop)?\.|mask_token|decoder_|pre_logits\.")

# Names of torchvision's ViTs -> ours; files of before version 0.13 say linear_1 and linear_2.
_TORCHVISION = (
  (r"class_token", "class_token"),
  (r"encoder\.pos_embedding", "positions"),
  (r"conv_proj\.", "stem/dense/"),
  (r"(blocks/\d+/)ln_1\.", r"\1attention_norm/"),
  (r"(blocks/\d+/)self_attention\.in_proj_(weight|bias)", r"\1attention/query_key_value/\2"),
  (r"(blocks/\d+/)self_attention\.out_proj\.", r"\1attention/out/"),
  (r"(blocks/\d+/)ln_2\.", r"\1mlp_norm/"),
  (r"(blocks/\d+/)mlp\.(?:0|linear_1)\.", r"\1mlp/expand/"),
  (r"(blocks/\d+/)mlp\.(?:3|linear_2)\.", r"\1mlp/contract/"),
  (r"encoder\.ln\.", "norm/"),
)
_BESIDE_TORCHVISION = re.compile(r"heads\.")

# Names of Flax's ViTs (google-research's vision_transformer, then big_vision) -> ours.
_FLAX = (
  (r"cls", "class_token"),
  (r"(Transformer/posembed_input/)?pos_embedding", "positions"),
  (r"embedding/(kernel|bias)", r"stem/dense/\1"),
  (r"(blocks/(?:\d+/)?)LayerNorm_0/(scale|bias)", r"\1attention_norm/\2"),
  (
    r"(blocks/(?:\d+/)?)MultiHeadDotProductAttention_[01]/(query|key|value|out)/(kernel|bias)",
    r"\1attention/\2/\3",
  ),
  (r"(blocks/(?:\d+/)?)LayerNorm_[12]/(scale|bias)", r"\1mlp_norm/\2"),
  (r"(blocks/(?:\d+/)?)MlpBlock_[03]/Dense_0/(kernel|bias)", r"\1mlp/expand/\2"),
  (r"(blocks/(?:\d+/)?)MlpBlock_[03]/Dense_1/(kernel|bias)", r"\1mlp/contract/\2"),
  (r"Transformer/encoder_norm/(scale|bias)", r"norm/\1"),
)
_BESIDE_FLAX = re.compile(r"head/|pre_logits/|MAPHead_0/")

# Names of the EfficientNets in PyTorch that began as L. Melas-Kyriazi's -> ours. A norm's bias is
# that of its convolution.
_NORM = {"weight": "norm/scale", "bias": "bias", "running_mean": "norm/mean"}
_NORM |= {"running_var": "norm/var"}
_NORMED = r"(weight|bias|running_mean|running_var)"
_EFFICIENTNET = (
  (r"_conv_stem\.weight", "stem/kernel"),
  (rf"_bn0\.{_NORMED}", r"stem/\1"),
  (r"(blocks/\d+/)_expand_conv\.weight", r"\1expand/kernel"),
  (rf"(blocks/\d+/)_bn0\.{_NORMED}", r"\1expand/\2"),
  (r"(blocks/\d+/)_depthwise_conv\.weight", r"\1depthwise/kernel"),
  (rf"(blocks/\d+/)_bn1\.{_NORMED}", r"\1depthwise/\2"),
  (r"(blocks/\d+/)_se_(reduce|expand)\.weight", r"\1gate/\2/kernel"),
  (r"(blocks/\d+/)_se_(reduce|expand)\.bias", r"\1gate/\2/bias"),
  (r"(blocks/\d+/)_project_conv\.weight", r"\1project/kernel"),
  (rf"(blocks/\d+/)_bn2\.{_NORMED}", r"\1project/\2"),
  (r"_conv_head\.weight", "head/kernel"),
  (rf"_bn1\.{_NORMED}", r"head/\1"),
)
_BESIDE_EFFICIENTNET = re.compile(r"_fc\.|.*\.num_batches_tracked")

_FUSED = ("query", "key", "value")
# How pixels were made numbers: mean and standard deviation of red, green and blue in [0, 1].
PIXELS = {
  "unit": ((0.5,) * 3, (0.5,) * 3),  # [-1, 1]
  "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
  "lite": ((127 / 255,) * 3, (128 / 255,) * 3),
  "faceres": ((123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255,) * 3),
}


@dataclasses.dataclass(frozen=True)
class Public:
  """Arrays that had public names.

  Attributes:
    naming: whose names they were.
    arrays: our names of an encoder -> arrays.
    encoder: section of the config of an encoder that they mean the same in. What is a list stands
      for any of its values.
  """

  naming: str
  arrays: Arrays
  encoder: dict[str, Any]

  def seen_through(self, pixels: str) -> "Public":
    """The same for images in [-1, 1], where it was trained on pixels made otherwise.

    Args:
      pixels: one of `PIXELS`.
    """
    mean, deviation = (np.asarray(x, np.float64) for x in PIXELS[pixels])
    arrays, encoder = dict(self.arrays), dict(self.encoder)
    name = "stem/dense/kernel" if "stem/dense/kernel" in arrays else "stem/kernel"
    kernel = arrays[name].astype(np.float64)
    shape, kernel = kernel.shape, kernel.reshape(-1, 3, kernel.shape[-1])
    if name == "stem/kernel":  # zeros around the image stand for the mean: it is no bias
      encoder["centre"] = (2 * mean - 1).tolist()
    elif pixels != "unit":
      moved = ((0.5 - mean) / deviation)[None, :, None] * kernel
      bias = arrays["stem/dense/bias"] + moved.sum((0, 1))
      arrays["stem/dense/bias"] = bias.astype(np.float32)
    kernel = (kernel / (2 * deviation)[None, :, None]).reshape(shape)
    arrays[name] = kernel.astype(np.float32)
    return dataclasses.replace(self, arrays=arrays, encoder=encoder)


def convert(arrays: Mapping[str, np.ndarray], prefix: str | None = None) -> Public | None:
  """Recognises public names and makes ours of them.

  Args:
    arrays: name -> array, as in a file.
    prefix: what comes before the names of the network in the file, such as "teacher.backbone";
      None: whatever it is where there is one network, or the teacher's.

  Returns:
    The network; None where no names are known.

  Raises:
    ValueError: it is not complete, has what ours have not, or there are several.
  """
  for naming in _NAMINGS:
    end = re.compile(rf"(?:.*[./])?(?={re.escape(naming.anchor)}$)")
    roots = [found[0] for name in arrays if (found := end.match(name))]
    if not roots:
      continue
    root = _choose(roots, prefix)
    below = {n.removeprefix(root): np.asarray(a) for n, a in arrays.items() if n.startswith(root)}
    try:
      ours = naming.convert(below)
      return Public(naming.name, ours, naming.encoder(ours, below))
    except (KeyError, IndexError) as e:
      what = f"lack {e.args[0]}" if isinstance(e, KeyError) else f"have other axes ({e})"
      raise ValueError(f"the weights, named as in {naming.name}, {what}") from e
  return None


def _choose(roots: list[str], prefix: str | None) -> str:
  names = [root.rstrip("./") for root in roots]
  if prefix is not None:
    if prefix.rstrip("./") not in names:
      raise ValueError(f"no network below {prefix!r}; there is one below {some(map(repr, names))}")
    return roots[names.index(prefix.rstrip("./"))]
  if len(roots) > 1:
    teachers = [root for root in roots if "teacher" in root]
    if len(teachers) != 1:
      raise ValueError(
        f"{len(roots)} networks, below {some(map(repr, names))}: choose one by --prefix"
      )
    return teachers[0]
  return roots[0]


def of_transformers(names: Iterable[str]) -> bool:
  """Whether arrays have the names of a ViT of `transformers`."""
  return any("embeddings.patch_embeddings.projection." in name for name in names)


def from_transformers(arrays: Mapping[str, np.ndarray]) -> Arrays:
  """Weights of `transformers`' ViT, MAE and DINOv2, with or without registers, as of `vit.ViT`.

  They mean the same only in a model that is built as theirs was: `class_token=True, gelu="exact"`
  and the patch stem; for ViTModel (google/vit-*: Dosovitskiy et al., 2021, arXiv:2010.11929) and
  ViTMAEModel (He et al., 2021, arXiv:2111.06377) `norm_epsilon=1e-12`; for DINOv2 (Oquab et al.,
  2023, arXiv:2304.07193) `layer_scale=1.0`, and `registers=4` where they have them (Darcet et al.,
  2023, arXiv:2309.16588). The state has neither the epsilon nor the number of heads. Heads,
  poolers, decoders and mask tokens are left out.

  Args:
    arrays: the state of a model, as a file of the library or `state_dict()` names it.

  Returns:
    Name -> array, blocks one by one; `fit` makes them fit a model.

  Raises:
    ValueError: names that no such model has, two that mean the same, or a query, key or value
      without the other two.
  """
  block = re.compile(r"^(encoder\.layer|layers)\.(\d+)\.")
  bare = lambda name: block.sub(r"blocks/\2/", _OF_TRANSFORMERS.sub("", name))
  what = "a ViT or DINOv2 of transformers"
  return _fuse(_of_torch(arrays, _TRANSFORMERS, _BESIDE_TRANSFORMERS, bare, what))


def from_timm(arrays: Mapping[str, np.ndarray]) -> Arrays:
  """Weights of timm's `VisionTransformer` and of those named after it, as of `vit.ViT`.

  MAE (He et al., 2021, arXiv:2111.06377), DINO (Caron et al., 2021, arXiv:2104.14294) and DINOv2
  in the authors' own files; otherwise as `from_transformers`. Where the class token has no position
  of its own, as with timm's registers, it gets one of zeros.
  """
  block = re.compile(r"^blocks\.(?:\d+\.)?(\d+)\.")
  bare = lambda name: block.sub(r"blocks/\1/", name)
  ours = _of_torch(arrays, _TIMM, _BESIDE_TIMM, bare, "a ViT of timm, MAE, DINO or DINOv2")
  positions = ours.get("positions")
  if "class_token" in ours and positions is not None and positions.ndim == 3:
    count = positions.shape[1]
    if math.isqrt(count) ** 2 == count:
      ours["positions"] = np.concatenate([np.zeros_like(positions[:, :1]), positions], axis=1)
  return ours


def from_torchvision(arrays: Mapping[str, np.ndarray]) -> Arrays:
  """Weights of torchvision's `VisionTransformer` as of `vit.ViT`; otherwise as `from_transformers`.

  Its norms have the epsilon 1e-6.
  """
  bare = lambda name: re.sub(r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks/\1/", name)
  return _of_torch(arrays, _TORCHVISION, _BESIDE_TORCHVISION, bare, "a ViT of torchvision")


def from_flax(arrays: Mapping[str, np.ndarray]) -> Arrays:
  """Weights of google-research's ViTs in Flax, one block after the other or all in one, as ours.

  Those of "How to train your ViT?" (Steiner et al., 2021, arXiv:2106.10270) and of big_vision.
  """
  bare = lambda name: re.sub(r"^Transformer/encoderblock(?:_0*(\d+))?/", _block_of_flax, name)
  ours = {}
  for name, array in translated(arrays, _FLAX, _BESIDE_FLAX, bare, "a ViT of vision_transformer"):
    if name == "stem/dense/kernel":
      array = array.reshape(-1, array.shape[-1])
    elif match := re.match(r"blocks/(\d+/)?attention/(\w+)/(kernel|bias)", name):
      array = _without_heads(array, match[2], match[3], stacked=match[1] is None)
    put(ours, name, array)
  return unstack(_fuse(ours))


def _block_of_flax(match: re.Match[str]) -> str:
  return "blocks/" if match[1] is None else f"blocks/{match[1]}/"


def _without_heads(array: np.ndarray, part: str, kind: str, *, stacked: bool) -> np.ndarray:
  """Heads and what is in each as one axis, where they are two."""
  first = array.shape[:stacked]
  if kind == "kernel":
    sides = (-1, array.shape[-1]) if part == "out" else (array.shape[stacked], -1)
    return array.reshape(*first, *sides)
  return array.reshape(*first, -1)


def from_efficientnet(arrays: Mapping[str, np.ndarray]) -> Arrays:
  """Weights of the EfficientNets of `efficientnet-lite-pytorch` as of `efficientnet.EfficientNet`.

  With batch norms as they are; `fold` folds them.
  """
  bare = lambda name: re.sub(r"^_blocks\.(\d+)\.", r"blocks/\1/", name)
  names = translated(arrays, _EFFICIENTNET, _BESIDE_EFFICIENTNET, bare, "an EfficientNet")
  ours = {}
  for name, array in names:
    layer, _, last = name.rpartition("/")
    if "/gate/" not in name and last in _NORM:
      name = f"{layer}/{_NORM[last]}"
    elif array.ndim == 4:
      array = array.transpose(2, 3, 1, 0)  # rows, columns, inner, outer
      array = array[:, :, 0] if "depthwise" in name else array
      array = array if layer == "stem" or "depthwise" in name else array[0, 0]
    put(ours, name, array)
  return ours


def from_faceres(arrays: Mapping[str, np.ndarray]) -> Arrays:
  """Weights of `faceres-deep` as of `mobilenet.MobileNet`, for images of red, green and blue.

  Batch norms are folded already: into a kernel and a bias, or a factor and a bias.
  """
  bias = lambda name: arrays[f"{name}_bn/batchnorm_1/sub"].reshape(-1)
  ours = {
    "stem/kernel": arrays["conv1/convolution/merged_input"][:, :, ::-1],  # blue came first
    "stem/bias": bias("conv1"),
  }
  for block in range(13):
    depthwise, pointwise = f"conv_dw_{block + 1}", f"conv_pw_{block + 1}"
    kernel = arrays[f"{depthwise}/depthwise_kernel"][..., 0]
    factor = arrays[f"{depthwise}_bn/batchnorm_1/mul"].reshape(-1)
    ours[f"blocks/{block}/depthwise/kernel"] = kernel * factor
    ours[f"blocks/{block}/depthwise/bias"] = bias(depthwise)
    ours[f"blocks/{block}/pointwise/kernel"] = arrays[f"{pointwise}/convolution/merged_input"][0, 0]
    ours[f"blocks/{block}/pointwise/bias"] = bias(pointwise)
  return ours


def _of_torch(
  arrays: Mapping[str, np.ndarray],
  table: Table,
  beside: re.Pattern[str],
  bare: Callable[[str], str],
  what: str,
) -> Arrays:
  ours = {}
  for name, array in translated(arrays, table, beside, bare, what):
    put(ours, *_orient(name, array))
  return ours


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


def _fuse(weights: Mapping[str, np.ndarray]) -> Arrays:
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
    put(fused, f"{head}/query_key_value/{tail}", joined)
  return fused


# The sections that they need.


def _vit(arrays: Arrays, *, gelu: str, epsilon: float, num_heads: int | None) -> dict[str, Any]:
  for name, axes in (("stem/dense/kernel", 2), ("stem/dense/bias", 1), ("positions", 3)):
    if name not in arrays:
      raise ValueError(f"the weights lack {name}")
    if arrays[name].ndim != axes:
      raise ValueError(f"{name} of shape {arrays[name].shape}: it should have {axes} axes")
  inner, width = arrays["stem/dense/kernel"].shape
  blocks = {match[1] for name in arrays if (match := re.match(r"blocks/(\d+)/", name))}
  registers = arrays.get("register_tokens")
  return {
    "name": "vit.ViT",
    "variant": f"mu/{math.isqrt(inner // 3)}",
    "width": width,
    "depth": len(blocks),
    # None of these networks says so, and all have heads of 64 channels.
    "num_heads": num_heads or max(width // 64, 1),
    "class_token": "class_token" in arrays,
    "registers": 0 if registers is None else registers.shape[1],
    "layer_scale": float("blocks/0/scales/mlp" in arrays),
    "gelu": gelu,
    "norm_epsilon": epsilon,
  }


def _vit_of_transformers(arrays: Arrays, _: Arrays) -> dict[str, Any]:
  epsilon = 1e-6 if "blocks/0/scales/mlp" in arrays else 1e-12
  return _vit(arrays, gelu="exact", epsilon=epsilon, num_heads=None)


def _vit_of_timm(arrays: Arrays, _: Arrays) -> dict[str, Any]:
  return _vit(arrays, gelu="exact", epsilon=1e-6, num_heads=None)


def _vit_of_flax(arrays: Arrays, theirs: Arrays) -> dict[str, Any]:
  # Flax's GELU is the approximation by default.
  heads = [a.shape[-2] for n, a in theirs.items() if re.fullmatch(r"Trans.*/query/kernel", n)]
  return _vit(arrays, gelu="tanh", epsilon=1e-6, num_heads=heads[0] if heads else None)


def _efficientnet(arrays: Arrays, _: Arrays) -> dict[str, Any]:
  variant = efficientnet.variant_of({name: array.shape for name, array in arrays.items()})
  if arrays["stem/kernel"].ndim != 4:
    raise ValueError(f"stem/kernel of shape {arrays['stem/kernel'].shape}: it should have 4 axes")
  return {
    "name": "efficientnet.EfficientNet",
    "variant": variant,
    "norm": ["batch", "none"],
  }


def _mobilenet(arrays: Arrays, _: Arrays) -> dict[str, Any]:
  multiplier = arrays["stem/kernel"].shape[3] / 32
  return {"name": "mobilenet.MobileNet", "multiplier": multiplier, "norm": "none"}


@dataclasses.dataclass(frozen=True)
class _Naming:
  """Whose names; the name that they are known by; what makes ours of them."""

  name: str
  anchor: str
  convert: Callable[[Mapping[str, np.ndarray]], Arrays]
  encoder: Callable[[Arrays, Arrays], dict[str, Any]]


_NAMINGS = (
  _Naming(
    "transformers",
    "embeddings.patch_embeddings.projection.weight",
    from_transformers,
    _vit_of_transformers,
  ),
  _Naming("timm", "patch_embed.proj.weight", from_timm, _vit_of_timm),
  _Naming("torchvision's ViTs", "conv_proj.weight", from_torchvision, _vit_of_timm),
  _Naming("vision_transformer", "Transformer/encoder_norm/scale", from_flax, _vit_of_flax),
  _Naming("efficientnet-pytorch", "_conv_stem.weight", from_efficientnet, _efficientnet),
  _Naming("faceres", "conv1/convolution/merged_input", from_faceres, _mobilenet),
  _Naming("torchvision's VGG16", "features.28.weight", torchvision.from_vgg, torchvision.vgg),
  # Before those of ResNets, whose names theirs are too.
  _Naming(
    "insightface", "layer1.0.prelu.weight", torchvision.from_insightface, torchvision.of_resnet
  ),
  _Naming(
    "torchvision's ResNets", "layer1.0.conv1.weight", torchvision.from_resnet, torchvision.of_resnet
  ),
  _Naming(
    "face.evoLVe", "body.0.res_layer.1.weight", torchvision.from_evolve, torchvision.of_resnet
  ),
  _Naming(
    "torchvision's InceptionV3",
    "Conv2d_1a_3x3.conv.weight",
    torchvision.from_inception,
    torchvision.of_inception,
  ),
  _Naming(
    "torchvision's DenseNets",
    "features.conv0.weight",
    torchvision.from_densenet,
    torchvision.of_densenet,
  ),
)
