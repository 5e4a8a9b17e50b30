"""EfficientNet: an image to a grid of tokens by inverted bottlenecks, scaled in three ways."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from affjax.models.convolutions import NORMS, Convolution, Encoder, Gate, relu6

# Of EfficientNet-B0, by stage: how often, kernel, stride of the first, times the channels inside,
# channels (table 1 of the paper).
_STAGES = (
  (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112),
  (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
)  # fmt: skip
_STEM, _HEAD = 32, 1280
# Times the channels, times the blocks.
_SCALES = {
  "b0": (1.0, 1.0), "b1": (1.0, 1.1), "b2": (1.1, 1.2), "b3": (1.2, 1.4), "b4": (1.4, 1.8),
  "b5": (1.6, 2.2), "b6": (1.8, 2.6), "b7": (2.0, 3.1), "lite0": (1.0, 1.0), "lite1": (1.0, 1.1),
  "lite2": (1.1, 1.2), "lite3": (1.2, 1.4), "lite4": (1.4, 1.8),
}  # fmt: skip
_SQUEEZE = 4  # times fewer channels inside a block's gate than come into the block


class EfficientNet(Encoder):
  """EfficientNet (Tan & Le, 2019, arXiv:1905.11946): what follows its last block gives the tokens.

  Variants "lite0" to "lite4" are the authors' for small devices: without gates of the channels,
  with ReLU cut off at 6 in place of swish, and with stem, head and the numbers of first and last
  blocks as they are in the smallest.

  Differs from the paper in that it can normalise over groups of channels of one image, or not at
  all (for weights whose batch norms are folded into them), in that it has neither dropout nor
  classifier, and in that the last map is averaged into a grid of tokens, which a decoder pools.

  With norm "batch" a frame that is not there still counts in a batch's statistics.
  """

  def __init__(
    self,
    *,
    image_size: int,
    variant: str = "lite0",
    grid: int = 1,
    norm: str = "batch",
    drop_path_rate: float = 0.0,
    centre: Sequence[float] = (0.0, 0.0, 0.0),
    dtype: str | jnp.dtype = "float32",
    rngs: nnx.Rngs,
  ) -> None:
    """Builds the encoder.

    Args:
      image_size: this, `grid`, `centre` and `dtype` as in `convolutions.Encoder`.
      variant: "b0" to "b7", or "lite0" to "lite4".
      grid: see there.
      norm: "batch" (`nnx.BatchNorm`), "group" (`nnx.GroupNorm`, groups of 8 channels) or "none"
        (biases alone).
      drop_path_rate: how often a block is left out that adds to its input, at the end; it grows
        from 0 at the first block in even steps (the authors take 0.2).
      centre: see there.
      dtype: see there.
      rngs: source of the parameters' keys.

    Raises:
      ValueError: a variant or norm that does not exist, or too many tokens.
    """
    if variant not in _SCALES:
      raise ValueError(f"variant {variant!r} of an EfficientNet: use one of {list(_SCALES)}")
    if norm not in NORMS:
      raise ValueError(f"norm {norm!r} of an EfficientNet: use one of {list(NORMS)}")
    stem, stages, head = _sizes(variant)
    lite = variant.startswith("lite")
    super().__init__(image_size=image_size, grid=grid, centre=centre, dtype=dtype)
    common = dict(norm=norm, dtype=self._dtype, rngs=rngs)
    active = common | {"activation": relu6 if lite else jax.nn.swish}
    self.stem = Convolution((3, 3, 3, stem), stride=2, **active)
    side, count, blocks = -(-image_size // 2), sum(stage[0] for stage in stages), []
    inner = stem
    for repeats, kernel, first, ratio, outer in stages:
      for index in range(repeats):
        stride = 1 if index else first
        rate = drop_path_rate * len(blocks) / count
        sizes = (inner, outer, kernel, stride, ratio)
        blocks.append(Block(*sizes, gate=not lite, drop_path_rate=rate, **active))
        inner, side = outer, -(-side // stride)
    self.blocks = nnx.List(blocks)
    self.head = Convolution((inner, head), **active)
    self.finish(head, side)

  def trunk(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
    """See `convolutions.Encoder`."""
    x = self.stem(x, train=train)
    for block in self.blocks:
      x = block(x, train=train, rngs=rngs)
    return self.head(x, train=train)


class Block(nnx.Module):
  """An inverted bottleneck (Sandler et al., 2018, arXiv:1801.04381), with a gate or without.

  More channels, a convolution of each alone, few channels; added to its input where it has the same
  size.
  """

  def __init__(
    self,
    inner: int,
    outer: int,
    kernel: int,
    stride: int,
    ratio: int,
    *,
    gate: bool,
    drop_path_rate: float,
    **layer: Any,
  ) -> None:
    """Builds the block.

    Args:
      inner: channels that come in.
      outer: channels that come out.
      kernel: rows and columns of the convolution.
      stride: of it.
      ratio: times as many channels inside.
      gate: whether channels inside are gated, see `convolutions.Gate`.
      drop_path_rate: probability of adding nothing to a sample.
      **layer: see `Convolution`.
    """
    middle = inner * ratio
    self.expand = Convolution((inner, middle), **layer) if ratio > 1 else None
    self.depthwise = Convolution((kernel, kernel, middle), stride=stride, **layer)
    self.gate = Gate(middle, inner // _SQUEEZE, layer["dtype"], layer["rngs"]) if gate else None
    self.project = Convolution((middle, outer), **(layer | {"activation": None}))
    self.drop_path = nnx.Dropout(drop_path_rate, broadcast_dims=(-3, -2, -1))
    self._adds = stride == 1 and inner == outer

  def __call__(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
    """Maps [batch, height, width, inner] to [batch, height / stride, width / stride, outer]."""
    y = x if self.expand is None else self.expand(x, train=train)
    y = self.depthwise(y, train=train)
    y = y if self.gate is None else self.gate(y)
    y = self.project(y, train=train)
    return x + self.drop_path(y, deterministic=not train, rngs=rngs) if self._adds else y


def _sizes(variant: str) -> tuple[int, list[tuple[int, int, int, int, int]], int]:
  """Channels of the stem, the stages as in `_STAGES`, channels of the head."""
  wide, deep = _SCALES[variant]
  fixed = variant.startswith("lite")
  stages = []
  for number, (repeats, kernel, stride, ratio, channels) in enumerate(_STAGES):
    if not (fixed and number in (0, len(_STAGES) - 1)):
      repeats = math.ceil(repeats * deep)
    stages.append((repeats, kernel, stride, ratio, _rounded(channels * wide)))
  stem, head = (_STEM, _HEAD) if fixed else (_rounded(_STEM * wide), _rounded(_HEAD * wide))
  return stem, stages, head


def _rounded(channels: float) -> int:
  """The nearest multiple of 8, or the next where that would be a tenth less than asked for."""
  nearest = int(channels + 4) // 8 * 8
  return nearest + 8 if nearest < 0.9 * channels else nearest


def variant_of(shapes: Mapping[str, tuple[int, ...]]) -> str:
  """The variant whose arrays have these shapes, by name; ValueError: there is none."""
  gates = any("/gate/" in name for name in shapes)
  count = len({name.split("/")[1] for name in shapes if name.startswith("blocks/")})
  layers = ["stem", *(f"blocks/{index}/project" for index in range(count)), "head"]
  found = [math.prod(shapes.get(f"{layer}/bias", (0,))) for layer in layers]
  for variant in _SCALES:
    stem, stages, head = _sizes(variant)
    blocks = [channels for repeats, *_, channels in stages for _ in range(repeats)]
    if found == [stem, *blocks, head] and gates != variant.startswith("lite"):
      return variant
  raise ValueError(f"no EfficientNet of {list(_SCALES)} has {count} blocks of these sizes: {found}")
