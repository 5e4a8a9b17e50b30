"""Public names of convolutional networks in PyTorch turned into ours.

Those of torchvision, and of what follows it: timm's SE-ResNets, and the networks of faces of
insightface and face.evoLVe. Batch norms stay as they are; `fold` folds them.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from affjax.models import densenet, inception, resnet
from affjax.models.weights.fitting import put
from affjax.models.weights.tables import Arrays, norm, normed, translated, turned

# torchvision's VGG16: the places of its convolutions in a list, which has ReLU and pools too.
_CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_VGG = (
  (r"features\.0\.weight", "stem/kernel"),
  (r"features\.0\.bias", "stem/bias"),
  *((rf"features\.{n}\.weight", f"blocks/{i}/kernel") for i, n in enumerate(_CONVOLUTIONS[1:])),
  *((rf"features\.{n}\.bias", f"blocks/{i}/bias") for i, n in enumerate(_CONVOLUTIONS[1:])),
  *((rf"classifier\.{n}\.weight", f"dense/{i}/kernel") for i, n in enumerate((0, 3))),
  *((rf"classifier\.{n}\.bias", f"dense/{i}/bias") for i, n in enumerate((0, 3))),
)
_BESIDE_VGG = re.compile(r"classifier\.6\.")

# Below, `blocks/N/` stands for what precedes names in a block.
_STAGE = re.compile(r"^layer([1-4])\.(\d{1,3})\.")
_BLOCK = r"(blocks/\d+/)"
_SHORTCUT = (
  (rf"{_BLOCK}downsample\.0\.weight", r"\1shortcut/kernel"),
  *normed(rf"{_BLOCK}downsample\.1", r"\1shortcut"),
)
_RESNET = (
  (r"conv1\.weight", "stem/kernel"),
  *normed("bn1", "stem"),
  *((rf"{_BLOCK}conv{n + 1}\.weight", rf"\1layers/{n}/kernel") for n in range(3)),
  *(row for n in range(3) for row in normed(rf"{_BLOCK}bn{n + 1}", rf"\1layers/{n}")),
  *((rf"{_BLOCK}se\.fc{n}\.weight", rf"\1gate/{part}/kernel")
    for n, part in ((1, "reduce"), (2, "expand"))),
  *((rf"{_BLOCK}se\.fc{n}\.bias", rf"\1gate/{part}/bias")
    for n, part in ((1, "reduce"), (2, "expand"))),
  *_SHORTCUT,
)  # fmt: skip
_BESIDE_RESNET = re.compile(r"fc\.|.*\.num_batches_tracked")

_INSIGHTFACE = (
  (r"conv1\.weight", "stem/kernel"),
  *normed("bn1", "stem"),
  (r"prelu\.weight", "prelu/slope"),
  *norm(rf"{_BLOCK}bn1", r"\1norm"),
  (rf"{_BLOCK}conv1\.weight", r"\1first/kernel"),
  *norm(rf"{_BLOCK}bn2", r"\1middle"),
  (rf"{_BLOCK}prelu\.weight", r"\1prelu/slope"),
  (rf"{_BLOCK}conv2\.weight", r"\1last/kernel"),
  *normed(rf"{_BLOCK}bn3", r"\1last"),
  *_SHORTCUT,
  *norm("bn2", "embedding/norm"),
  (r"fc\.weight", "embedding/dense/kernel"),
  (r"fc\.bias", "embedding/dense/bias"),
  *norm("features", "embedding/last"),
)

_EVOLVE = (
  (r"input_layer\.0\.weight", "stem/kernel"),
  *normed(r"input_layer\.1", "stem"),
  (r"input_layer\.2\.weight", "prelu/slope"),
  *norm(rf"{_BLOCK}res_layer\.0", r"\1norm"),
  (rf"{_BLOCK}res_layer\.1\.weight", r"\1first/kernel"),
  (rf"{_BLOCK}res_layer\.2\.weight", r"\1prelu/slope"),
  (rf"{_BLOCK}res_layer\.3\.weight", r"\1last/kernel"),
  *normed(rf"{_BLOCK}res_layer\.4", r"\1last"),
  (rf"{_BLOCK}res_layer\.5\.fc1\.weight", r"\1gate/reduce/kernel"),
  (rf"{_BLOCK}res_layer\.5\.fc2\.weight", r"\1gate/expand/kernel"),
  (rf"{_BLOCK}shortcut_layer\.0\.weight", r"\1shortcut/kernel"),
  *normed(rf"{_BLOCK}shortcut_layer\.1", r"\1shortcut"),
  *norm(r"output_layer\.0", "embedding/norm"),
  (r"output_layer\.3\.weight", "embedding/dense/kernel"),
  (r"output_layer\.3\.bias", "embedding/dense/bias"),
  *norm(r"output_layer\.4", "embedding/last"),
)
_BESIDE = re.compile(r".*\.num_batches_tracked")

# torchvision's InceptionV3: layers before its blocks, and what its blocks, by their names or the
# first character of these, call their chains. Below, a place is what `_place_in_inception` makes.
_EARLY = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
_CHAINS = {
  "5": ("branch1x1", "branch5x5", "branch3x3dbl"),
  "6a": ("branch3x3", "branch3x3dbl"),
  "6": ("branch1x1", "branch7x7", "branch7x7dbl"),
  "7a": ("branch3x3", "branch7x7x3"),
  "7": ("branch1x1", "branch3x3", "branch3x3dbl"),
}
_PLACE = r"((?:stem|early|blocks)[a-z0-9/]*)"
_INCEPTION = ((rf"{_PLACE}\.conv\.weight", r"\1/kernel"), *normed(rf"{_PLACE}\.bn", r"\1"))
_BESIDE_INCEPTION = re.compile(r"AuxLogits\.|fc\.|.*\.num_batches_tracked")

# torchvision's DenseNets; in their files there is one dot more in the names of a layer.
_LAYER, _BETWEEN = r"(blocks/\d+/\d+/)", r"(transitions/\d+/)"
_DENSENET = (
  (r"features\.conv0\.weight", "stem/kernel"),
  *normed(r"features\.norm0", "stem"),
  *norm(rf"{_LAYER}norm\.?1", r"\1reduce/norm"),
  (rf"{_LAYER}conv\.?1\.weight", r"\1reduce/mix/kernel"),
  *norm(rf"{_LAYER}norm\.?2", r"\1grow/norm"),
  (rf"{_LAYER}conv\.?2\.weight", r"\1grow/mix/kernel"),
  *norm(rf"{_BETWEEN}norm", r"\1norm"),
  (rf"{_BETWEEN}conv\.weight", r"\1mix/kernel"),
  *norm(r"features\.norm5", "norm"),
)
_BESIDE_DENSENET = re.compile(r"classifier\.|.*\.num_batches_tracked")


def from_vgg(arrays: Mapping[str, np.ndarray]) -> Arrays:
  """Weights of torchvision's VGG16 as of `vgg.VGG`, with its fully connected layers but the last.

  These are for images of as many pixels as theirs.
  """
  found = translated(arrays, _VGG, _BESIDE_VGG, lambda name: name, "a VGG16 of torchvision")
  return _turned(found, of_map="dense/0/kernel", beside="blocks/11/bias")


def from_resnet(arrays: Mapping[str, np.ndarray]) -> Arrays:
  """Weights of torchvision's ResNets, and of timm's with gates, as of `resnet.ResNet`."""
  found = translated(arrays, _RESNET, _BESIDE_RESNET, _bare(arrays), "a ResNet of torchvision")
  return _turned(found)


def from_insightface(arrays: Mapping[str, np.ndarray]) -> Arrays:
  """Weights of the iresnets of insightface as of `resnet.ResNet` of kind "improved"."""
  found = translated(arrays, _INSIGHTFACE, _BESIDE, _bare(arrays), "an iresnet of insightface")
  return _turned(found, of_map="embedding/dense/kernel", beside="embedding/norm/bias")


def from_evolve(arrays: Mapping[str, np.ndarray]) -> Arrays:
  """Weights of the IR and IR-SE networks of face.evoLVe as of `resnet.ResNet` of kind "evolve"."""
  bare = lambda name: re.sub(r"^body\.(\d+)\.", r"blocks/\1/", name)
  found = translated(arrays, _EVOLVE, _BESIDE, bare, "an IR or IR-SE of face.evoLVe")
  return _turned(found, of_map="embedding/dense/kernel", beside="embedding/norm/bias")


def from_inception(arrays: Mapping[str, np.ndarray]) -> Arrays:
  """Weights of torchvision's InceptionV3 as of `inception.InceptionV3` that counts padding."""
  what = "an InceptionV3 of torchvision"
  return _turned(translated(arrays, _INCEPTION, _BESIDE_INCEPTION, _place_in_inception, what))


def _place_in_inception(name: str) -> str:
  """`stem.`, `early/N.`, `blocks/N/project.` or `blocks/N/chains/C/L/K.` for what precedes a layer.

  Chain C has layers L, of which that with kernels side by side has two K, where others have one.
  """
  first, _, rest = name.partition(".")
  if first in _EARLY:
    number = _EARLY.index(first)
    return f"{f'early/{number - 1}' if number else 'stem'}.{rest}"
  match = re.match(r"(branch\w+?)(?:_([1-9])([ab]?))?\.", rest)
  if match is None or first.lower() not in inception.CUTS:
    return name
  block, rest = f"blocks/{inception.CUTS.index(first.lower())}", rest[match.end() :]
  part = first.removeprefix("Mixed_")
  chains, project = _CHAINS.get(part) or _CHAINS[part[0]], part not in _CHAINS
  if match[1] in chains:
    layer = f"{int(match[2] or 1) - 1}/{int(match[3] == 'b')}"
    return f"{block}/chains/{chains.index(match[1])}/{layer}.{rest}"
  return f"{block}/project.{rest}" if match[0] == "branch_pool." and project else name


def from_densenet(arrays: Mapping[str, np.ndarray]) -> Arrays:
  """Weights of torchvision's DenseNets as of `densenet.DenseNet`."""
  before = lambda number: int(number) - 1
  block = lambda match: f"blocks/{before(match[1])}/{before(match[2])}/"
  between = lambda match: f"transitions/{before(match[1])}/"
  bare = lambda name: re.sub(
    r"^features\.transition(\d)\.", between,
    re.sub(r"^features\.denseblock(\d)\.denselayer(\d{1,3})\.", block, name),
  )  # fmt: skip
  what = "a DenseNet of torchvision"
  return _turned(translated(arrays, _DENSENET, _BESIDE_DENSENET, bare, what))


def vgg(arrays: Arrays, _: Arrays) -> dict[str, Any]:
  """The section of the config of an encoder that weights of a VGG16 need."""
  dense = [arrays[f"dense/{i}/bias"].size for i in range(2) if f"dense/{i}/bias" in arrays]
  multiplier = arrays["stem/bias"].size / 64
  return {"name": "vgg.VGG", "multiplier": multiplier, "dense": dense, "norm": "none"}


def of_resnet(arrays: Arrays, _: Arrays) -> dict[str, Any]:
  """The section that weights of a ResNet need, of pictures or of faces."""
  options = resnet.options_of({name: array.shape for name, array in arrays.items()})
  faces = options["kind"] != "original"
  norms = {"norm": "batch" if faces else ["batch", "none"]}
  return {"name": "resnet.ResNet", **options, "stride_in": "3x3", **norms}


def of_inception(arrays: Arrays, _: Arrays) -> dict[str, Any]:
  """The section that weights of an InceptionV3 need."""
  options = {"multiplier": arrays["stem/bias"].size / 32, "count_padding": True}
  return {"name": "inception.InceptionV3", **options, "norm": ["batch", "none"]}


def of_densenet(arrays: Arrays, _: Arrays) -> dict[str, Any]:
  """The section that weights of a DenseNet need."""
  multiplier = arrays["stem/bias"].size / 64
  return {"name": "densenet.DenseNet", "depth": densenet.depth_of(arrays), "multiplier": multiplier}


def _bare(arrays: Mapping[str, np.ndarray]) -> Callable[[str], str]:
  """What makes `blocks/N/` of `layerS.M.`, the blocks of all stages being counted on."""
  found = {match.groups() for name in arrays if (match := _STAGE.match(name))}
  order = {places: n for n, places in enumerate(sorted(found, key=lambda p: tuple(map(int, p))))}
  block = lambda match: f"blocks/{order[match.groups()]}/"
  return lambda name: _STAGE.sub(block, name)


def _turned(
  found: list[tuple[str, np.ndarray]], of_map: str | None = None, beside: str = ""
) -> Arrays:
  """Arrays of torch as ours.

  Args:
    found: our names with the arrays.
    of_map: name of a product's kernel that sees a whole map, which torch has as channels, rows,
      columns.
    beside: name of an array that has one number for each of the map's channels.
  """
  ours: Arrays = {}
  for name, array in found:
    if name == of_map:
      array = _places_first(name, array, dict(found)[beside].size)
    put(ours, name, turned(array))
  return ours


def _places_first(name: str, array: np.ndarray, channels: int) -> np.ndarray:
  """[outer, channels * rows * columns] -> [outer, rows * columns * channels]."""
  places = array.shape[1] // channels if array.ndim == 2 and channels else 0
  if not places or array.shape[1] != math.isqrt(places) ** 2 * channels:
    raise ValueError(
      f"{name} of shape {array.shape}: it should see the places of a square of {channels} channels"
    )
  return array.reshape(-1, channels, places).swapaxes(1, 2).reshape(array.shape)
