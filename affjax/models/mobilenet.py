"""MobileNet: an image to a grid of tokens by convolutions that are separable by channel."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from affjax.models.convolutions import NORMS, Convolution, Encoder, relu6

# Channels at multiplier 1 and stride of each block (table 1 of the paper).
_BLOCKS = (
  (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (512, 1), (512, 1),
  (512, 1), (512, 1), (1024, 2), (1024, 1),
)  # fmt: skip
_STEM = 32


class MobileNet(Encoder):
  """MobileNet-v1 (Howard et al., 2017, arXiv:1704.04861): its last map gives the tokens.

  Differs from the paper in that it can normalise over groups of channels of one image instead of
  over the batch, or not at all (for weights whose batch norms are folded into them), can stop at
  any block, and averages the map into a grid of tokens, which a decoder pools. ReLU is cut off at
  6: as in the authors' code (RECALL).

  With norm "batch" a frame that is not there still counts in a batch's statistics.
  """

  def __init__(
    self,
    *,
    image_size: int,
    multiplier: float = 1.0,
    depth: int = 13,
    grid: int = 1,
    norm: str = "group",
    centre: Sequence[float] = (0.0, 0.0, 0.0),
    dtype: str | jnp.dtype = "float32",
    rngs: nnx.Rngs,
  ) -> None:
    """Builds the encoder.

    Args:
      image_size: this, `grid`, `centre` and `dtype` as in `convolutions.Encoder`.
      multiplier: of all channels, the paper's alpha; they stay multiples of 8.
      depth: blocks of a depthwise and a pointwise convolution, at most 13.
      grid: see there.
      norm: "batch" (`nnx.BatchNorm`), "group" (`nnx.GroupNorm`, groups of 8 channels) or "none"
        (biases alone).
      centre: see there.
      dtype: see there.
      rngs: source of the parameters' keys.

    Raises:
      ValueError: a norm that does not exist, or too many blocks or tokens.
    """
    if norm not in NORMS:
      raise ValueError(f"norm {norm!r} of a MobileNet: use one of {list(NORMS)}")
    if not 1 <= depth <= len(_BLOCKS):
      raise ValueError(f"depth {depth} of a MobileNet: it has 1 to {len(_BLOCKS)} blocks")
    channels = lambda count: max(8, round(count * multiplier / 8) * 8)
    super().__init__(image_size=image_size, grid=grid, centre=centre, dtype=dtype)
    common = dict(norm=norm, dtype=self._dtype, rngs=rngs)
    inner, side = channels(_STEM), -(-image_size // 2)
    self.stem = Convolution((3, 3, 3, inner), stride=2, activation=relu6, **common)
    blocks = []
    for count, stride in _BLOCKS[:depth]:
      blocks.append(Separable(inner, channels(count), stride, **common))
      inner, side = channels(count), -(-side // stride)
    self.blocks = nnx.List(blocks)
    self.finish(inner, side)

  def trunk(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
    """See `convolutions.Encoder`; there is no dropout."""
    del rngs
    x = self.stem(x, train=train)
    for block in self.blocks:
      x = block(x, train=train)
    return x


class Separable(nnx.Module):
  """A 3x3 convolution of each channel alone, then a product that mixes the channels."""

  def __init__(
    self, inner: int, outer: int, stride: int, *, norm: str, dtype: jnp.dtype, rngs: nnx.Rngs
  ) -> None:
    """Builds the block: `inner` channels to `outer`."""
    common = dict(norm=norm, activation=relu6, dtype=dtype, rngs=rngs)
    self.depthwise = Convolution((3, 3, inner), stride=stride, **common)
    self.pointwise = Convolution((inner, outer), **common)

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps [batch, height, width, inner] to [batch, height / stride, width / stride, outer]."""
    return self.pointwise(self.depthwise(x, train=train), train=train)
