"""InceptionV3: an image to a grid of tokens by convolutions of several sizes side by side."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from affjax.models.convolutions import NORMS, Convolution, Encoder

# A chain of layers, each with its kernels (rows, columns), which stand side by side, and the
# channels of every one of them.
_Chain = tuple[tuple[tuple[tuple[int, int], ...], int], ...]
_1, _3, _5, _ROW, _COLUMN = (((n, m),) for n, m in ((1, 1), (3, 3), (5, 5), (1, 7), (7, 1)))
_CROSS = ((1, 3), (3, 1))

# Kernel, stride, whether there are zeros around, channels; a maximum follows the third and fifth.
_STEM = ((3, 2, False, 32), (3, 1, False, 32), (3, 1, True, 64), (1, 1, False, 80))
_STEM += ((3, 1, False, 192),)
_POOLED = (2, 4)


def _factorised(channels: int) -> tuple[_Chain, ...]:
  """Rows and columns of 7 x 7 apart (figure 6 of the paper)."""
  row, column = (_ROW, channels), (_COLUMN, channels)
  first = (_1, channels)
  return (
    ((_1, 192),),
    (first, row, (_COLUMN, 192)),
    (first, column, row, column, (_ROW, 192)),
  )


# Figures 5 and 7 of the paper, and what is between; as in the authors' code one 5 x 5 is left.
_FINE = (((_1, 64),), ((_1, 48), (_5, 64)), ((_1, 64), (_3, 96), (_3, 96)))
_COARSE = (((_1, 320),), ((_1, 384), (_CROSS, 384)), ((_1, 448), (_3, 384), (_CROSS, 384)))
_TO_MIDDLE = (((_3, 384),), ((_1, 64), (_3, 96), (_3, 96)))
_TO_COARSE = (((_1, 192), (_3, 320)), ((_1, 192), (_ROW, 192), (_COLUMN, 192), (_3, 192)))
# Name -> chains, and channels of what is made of the means; 0: maxima of a half as large map.
_BLOCKS: dict[str, tuple[tuple[_Chain, ...], int]] = {
  "mixed_5b": (_FINE, 32),
  "mixed_5c": (_FINE, 64),
  "mixed_5d": (_FINE, 64),
  "mixed_6a": (_TO_MIDDLE, 0),
  "mixed_6b": (_factorised(128), 192),
  "mixed_6c": (_factorised(160), 192),
  "mixed_6d": (_factorised(160), 192),
  "mixed_6e": (_factorised(192), 192),
  "mixed_7a": (_TO_COARSE, 0),
  "mixed_7b": (_COARSE, 192),
  "mixed_7c": (_COARSE, 192),
}
CUTS = tuple(_BLOCKS)


class InceptionV3(Encoder):
  """InceptionV3 (Szegedy et al., 2015, arXiv:1512.00567): the map after a block gives the tokens.

  Blocks have the names of the authors' code, which torchvision took over; their maps, of images of
  299 and of 112 pixels, and channels:

    mixed_5b            35 x 35   11 x 11    256
    mixed_5c, 5d        35 x 35   11 x 11    288
    mixed_6a to 6e      17 x 17     5 x 5    768
    mixed_7a              8 x 8     2 x 2   1280
    mixed_7b, 7c          8 x 8     2 x 2   2048

  Images need 75 pixels for the whole. There is no auxiliary classifier, so with a classifier of
  1000 classes it has 23,834,568 parameters, where 27,161,264 are counted with it.

  As in torchvision batch norms have scales; in Keras they have none, which is as if all were 1.
  Differs from the paper in that it can stop at any block, can normalise over groups of channels of
  one image, or not at all (for weights whose batch norms are folded into them), and averages the
  map into a grid of tokens, which a decoder pools.

  With norm "batch" a frame that is not there still counts in a batch's statistics.
  """

  def __init__(
    self,
    *,
    image_size: int,
    cut: str = "mixed_7c",
    multiplier: float = 1.0,
    grid: int = 1,
    norm: str = "batch",
    count_padding: bool = False,
    centre: Sequence[float] = (0.0, 0.0, 0.0),
    dtype: str | jnp.dtype = "float32",
    rngs: nnx.Rngs,
  ) -> None:
    """Builds the encoder.

    Args:
      image_size: this, `grid`, `centre` and `dtype` as in `convolutions.Encoder`.
      cut: the last block, by name; those after it are not built.
      multiplier: of all channels; they stay multiples of 8.
      grid: see there.
      norm: "batch" (`nnx.BatchNorm`), "group" (`nnx.GroupNorm`, groups of 8 channels) or "none"
        (biases alone).
      count_padding: whether means at the edge of a map are over the zeros around it too: as in
        torchvision, not as in Keras and the authors' code.
      centre: see there.
      dtype: see there.
      rngs: source of the parameters' keys.

    Raises:
      ValueError: a block or norm that does not exist, or too many tokens.
    """
    if cut not in _BLOCKS:
      raise ValueError(f"cut {cut!r} of an InceptionV3: use one of {list(CUTS)}")
    if norm not in NORMS:
      raise ValueError(f"norm {norm!r} of an InceptionV3: use one of {list(NORMS)}")
    super().__init__(image_size=image_size, grid=grid, centre=centre, dtype=dtype)
    layer = dict(norm=norm, activation=jax.nn.relu, dtype=self._dtype, rngs=rngs)
    scaled = lambda count: max(8, round(count * multiplier / 8) * 8)
    inner, side, layers, blocks = 3, image_size, [], []
    for index, (kernel, stride, padded, count) in enumerate(_STEM):
      outer, padding = scaled(count), "same" if padded else "valid"
      shape = (inner, outer) if kernel == 1 else (kernel, kernel, inner, outer)
      layers.append(Convolution(shape, stride=stride, padding=padding, **layer))
      inner, side = outer, side if padded else _reduced(side, kernel, stride)
      side = _reduced(side) if index in _POOLED else side
    for name in CUTS[: CUTS.index(cut) + 1]:
      chains, projected = _BLOCKS[name]
      chains = [[(kernels, scaled(count)) for kernels, count in chain] for chain in chains]
      projected = projected and scaled(projected)
      blocks.append(Mixed(inner, chains, projected, count_padding=count_padding, **layer))
      inner, side = blocks[-1].width, side if projected else _reduced(side)
    self.stem, self.early, self.blocks = layers[0], nnx.List(layers[1:]), nnx.List(blocks)
    self.finish(inner, side)

  def trunk(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
    """See `convolutions.Encoder`; there is no dropout."""
    del rngs
    for index, layer in enumerate([self.stem, *self.early]):
      x = layer(x, train=train)
      x = _maxima(x) if index in _POOLED else x
    for block in self.blocks:
      x = block(x, train=train)
    return x


class Mixed(nnx.Module):
  """Chains of convolutions side by side, and beside them means or maxima.

  Attributes:
    width: channels that come out, of all together.
  """

  def __init__(
    self,
    inner: int,
    chains: Sequence[Sequence[tuple[Sequence[tuple[int, int]], int]]],
    projected: int,
    *,
    count_padding: bool,
    **layer: Any,
  ) -> None:
    """Builds the block.

    Args:
      inner: channels that come in.
      chains: for each its layers: kernels (rows, columns) side by side, and channels of each.
      projected: channels that the means of 3 x 3 places are mixed to; 0: maxima of 3 x 3 places,
        and a map half as large, without zeros around: the last of every chain has stride 2.
      count_padding: see `InceptionV3`.
      **layer: see `Convolution`.
    """
    last = {} if projected else dict(stride=2, padding="valid")
    made, self.width = [], projected or inner
    for chain in chains:
      layers, width = [], inner
      for index, (kernels, count) in enumerate(chain):
        place = last if index == len(chain) - 1 else {}
        shapes = [((width, count) if k == (1, 1) else (*k, width, count)) for k in kernels]
        layers.append(nnx.List([Convolution(shape, **place, **layer) for shape in shapes]))
        width = count * len(kernels)
      made.append(nnx.List(layers))
      self.width += width
    self.chains = nnx.List(made)
    self.project = Convolution((inner, projected), **layer) if projected else None
    self._count_padding = count_padding

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps [batch, height, width, inner] to [batch, height, width, outer], or half the size."""
    parts = []
    for chain in self.chains:
      y = x
      for layers in chain:
        y = jnp.concatenate([layer(y, train=train) for layer in layers], axis=-1)
      parts.append(y)
    if self.project is None:
      parts.append(_maxima(x))
    else:
      parts.append(self.project(_means(x, self._count_padding), train=train))
    return jnp.concatenate(parts, axis=-1)


def _reduced(side: int, kernel: int = 3, stride: int = 2) -> int:
  """Rows of a map of windows without zeros around, of so many rows."""
  return max(side - kernel + stride, 0) // stride


def _maxima(x: jax.Array) -> jax.Array:
  return nnx.max_pool(x, (3, 3), (2, 2))


def _means(x: jax.Array, count_padding: bool) -> jax.Array:
  """Means of 3 x 3 places around each."""
  means = nnx.avg_pool(x, (3, 3), padding="SAME", count_include_pad=count_padding)
  return means.astype(x.dtype)
