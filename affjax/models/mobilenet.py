"""MobileNet: an image to a grid of tokens by convolutions that are separable by channel."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from affjax.models.convolutions import Convolution, cells, relu6

# Channels at multiplier 1 and stride of each block (table 1 of the paper).
_BLOCKS = (
  (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (512, 1), (512, 1),
  (512, 1), (512, 1), (1024, 2), (1024, 1),
)  # fmt: skip
_STEM = 32
_NORMS = ("group", "none")


class MobileNet(nnx.Module):
  """MobileNet-v1 (Howard et al., 2017, arXiv:1704.04861): its last map gives the tokens.

  Differs from the paper in that it normalises over groups of channels of one image instead of over
  the batch (or, for weights whose batch norms are folded into them, not at all), can stop at any
  block, and averages the map into a grid of tokens, which a decoder pools. ReLU is cut off at 6: as
  in the authors' code (RECALL).

  Attributes:
    width: channels of the tokens that come out.
    num_tokens: how many there are.
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
      image_size: height and width of the images in pixels.
      multiplier: of all channels, the paper's alpha; they stay multiples of 8.
      depth: blocks of a depthwise and a pointwise convolution, at most 13.
      grid: tokens in a row and in a column.
      norm: "group" (`nnx.GroupNorm`, groups of 8 channels) or "none" (biases alone).
      centre: red, green and blue that are subtracted from the images, in [-1, 1]. Padding is 0
        after that, so weights that were trained with a mean image need theirs.
      dtype: dtype of the activations; parameters are float32.
      rngs: source of the parameters' keys.

    Raises:
      ValueError: a norm that does not exist, or too many blocks or tokens.
    """
    if norm not in _NORMS:
      raise ValueError(f"norm {norm!r} of a MobileNet: use one of {list(_NORMS)}")
    if not 1 <= depth <= len(_BLOCKS):
      raise ValueError(f"depth {depth} of a MobileNet: it has 1 to {len(_BLOCKS)} blocks")
    channels = lambda count: max(8, round(count * multiplier / 8) * 8)
    self.image_size, self.grid, self.num_tokens = image_size, grid, grid**2
    self._dtype, self._centre = jnp.dtype(dtype), tuple(centre)
    common = dict(norm=norm, dtype=self._dtype, rngs=rngs)
    inner, side = channels(_STEM), -(-image_size // 2)
    self.stem = Convolution((3, 3, 3, inner), stride=2, activation=relu6, **common)
    blocks = []
    for count, stride in _BLOCKS[:depth]:
      blocks.append(Separable(inner, channels(count), stride, **common))
      inner, side = channels(count), -(-side // stride)
    if grid > side:
      raise ValueError(
        f"grid {grid} of a MobileNet: {depth} blocks make {image_size} pixels {side} x {side}"
      )
    self.blocks = nnx.List(blocks)
    self.width = inner

  def __call__(
    self,
    images: jax.Array,
    *,
    train: bool = False,
    rngs: nnx.Rngs | None = None,
    attention: bool = False,
  ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
    """Encodes images.

    Args:
      images: [batch, height, width, 3] floats in [-1, 1].
      train: changes nothing, as there is neither dropout nor a batch's statistic.
      rngs: not used.
      attention: whether to give maps too; there are none.

    Returns:
      [batch, grid * grid, width] means over the cells of the last map, in rows from the top left;
      with `attention` also {}.
    """
    del train, rngs
    centre = jnp.array(self._centre, images.dtype).reshape(1, 1, 1, 3)
    x = (images - centre).astype(self._dtype)
    x = self.stem(x)
    for block in self.blocks:
      x = block(x)
    tokens = cells(x, self.grid)
    return (tokens, {}) if attention else tokens


class Separable(nnx.Module):
  """A 3x3 convolution of each channel alone, then a product that mixes the channels."""

  def __init__(
    self, inner: int, outer: int, stride: int, *, norm: str, dtype: jnp.dtype, rngs: nnx.Rngs
  ) -> None:
    """Builds the block: `inner` channels to `outer`."""
    common = dict(norm=norm, activation=relu6, dtype=dtype, rngs=rngs)
    self.depthwise = Convolution((3, 3, inner), stride=stride, **common)
    self.pointwise = Convolution((inner, outer), **common)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [batch, height, width, inner] to [batch, height / stride, width / stride, outer]."""
    return self.pointwise(self.depthwise(x))
