"""Residual networks, of pictures and of faces: an image to a grid of tokens, or to one token."""

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from affjax.models.convolutions import NORMS, Convolution, Encoder, Gate, norm_of, normalise

KINDS = ("original", "improved", "evolve")
STRIDED = ("3x3", "1x1")
# Depth -> blocks of each stage: table 1 of He et al.; of faces two convolutions a block, and so 50
# of them with the stem and the embedding's product.
_STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
_STAGES_OF_FACES = _STAGES | {50: (3, 4, 14, 3)}
_WIDTHS = (64, 128, 256, 512)
_BOTTLENECK = 50  # the least depth whose blocks of pictures are bottlenecks
_EXPANSION = 4  # times the channels that come out of a bottleneck
_REDUCTION = 16  # times fewer numbers inside a gate
_EPSILON, _MOMENTUM = 1e-5, 0.9  # of batch norms, as in torchvision and insightface


class ResNet(Encoder):
  """ResNet (He et al., 2015, arXiv:1512.03385) and its relatives: the last map gives the tokens.

  With gates its blocks are those of SE-ResNet (Hu et al., 2017, arXiv:1709.01507). With a
  classifier of 1000 classes depth 18 has 11,689,512 parameters, depth 50 has 25,557,032, with gates
  28,088,024: a gate follows the last convolution of a block, and its two products have biases.

  For faces there are the "improved" units of ArcFace (Deng et al., 2018, arXiv:1801.07698), called
  IR, on an image that keeps its size in the stem: kind "improved" as in insightface, "evolve" as in
  face.evoLVe, whose first unit passes its input on by a max pool, and whose units have no norm
  between their convolutions (RECALL). Their gates have no biases. With `embedding=512`, of images
  of 112 pixels, depth 50 has 43,590,848 parameters as "improved" and 43,574,976 as "evolve", with
  gates (IR-SE-50) 43,813,568 and 43,797,696.

  Maps of images of 224 pixels ("original") or 112 (faces): 56 x 56, 28 x 28, 14 x 14, 7 x 7 after
  the stages.

  Differs from the papers in that it can be narrower, can normalise over groups of channels of one
  image, can stop after any stage, and averages the map into a grid of tokens, which a decoder
  pools.

  With norm "batch" a frame that is not there still counts in a batch's statistics.

  Attributes:
    epsilon: of its norms.
  """

  epsilon = _EPSILON

  def __init__(
    self,
    *,
    image_size: int,
    depth: int = 18,
    kind: str = "original",
    gates: bool = False,
    stages: int = 4,
    multiplier: float = 1.0,
    stride_in: str = "3x3",
    embedding: int = 0,
    dropout_rate: float = 0.4,
    grid: int = 1,
    norm: str = "batch",
    centre: Sequence[float] = (0.0, 0.0, 0.0),
    dtype: str | jnp.dtype = "float32",
    rngs: nnx.Rngs,
  ) -> None:
    """Builds the encoder.

    Args:
      image_size: this, `grid`, `centre` and `dtype` as in `convolutions.Encoder`.
      depth: 18, 34 or 50.
      kind: "original", "improved" or "evolve", see above.
      gates: whether the channels of each block are gated, see `convolutions.Gate`.
      stages: how many of the four stages are built.
      multiplier: of all channels; they stay multiples of 8.
      stride_in: which convolution of a bottleneck makes the map smaller: "3x3" (torchvision) or
        "1x1", the first (the paper, Keras).
      embedding: size of a vector that is made of the whole last map, the one token; 0: none.
      dropout_rate: before its product.
      grid: see there; with `embedding` there is one token.
      norm: "batch" (`nnx.BatchNorm`), "group" (`nnx.GroupNorm`, groups of 8 channels) or, of the
        "original", "none" (biases alone).
      centre: see there.
      dtype: see there.
      rngs: source of the parameters' keys.

    Raises:
      ValueError: an option that does not exist, or too many tokens.
    """
    named = dict(kind=kind, norm=norm, stride_in=stride_in)
    _check(depth=depth, stages=stages, embedding=embedding, **named)
    super().__init__(image_size=image_size, grid=grid, centre=centre, dtype=dtype)
    layer = dict(norm=norm, epsilon=self.epsilon, momentum=_MOMENTUM, dtype=self._dtype, rngs=rngs)
    faces = kind != "original"
    widths = [max(8, round(width * multiplier / 8) * 8) for width in _WIDTHS[:stages]]
    inner, side, blocks = widths[0], image_size, []
    if faces:
      self.stem, self.prelu = Convolution((3, 3, 3, inner), padding=1, **layer), PReLU(inner)
      block = functools.partial(Improved, lean=kind == "evolve", gate=gates, **layer)
    else:
      active = layer | {"activation": jax.nn.relu}
      self.stem, self.prelu = Convolution((7, 7, 3, inner), stride=2, padding=3, **active), None
      side = -(-side // 4)
      bottleneck = stride_in if depth >= _BOTTLENECK else None
      block = functools.partial(Block, bottleneck=bottleneck, gate=gates, **layer)
    for number, (width, count) in enumerate(zip(widths, _stages(kind, depth), strict=False)):
      for index in range(count):
        stride = 2 if index == 0 and (faces or number) else 1
        blocks.append(block(inner, width, stride))
        inner, side = blocks[-1].width, -(-side // stride)
    self.blocks = nnx.List(blocks)
    self.finish(inner, side)
    self.embedding = Embedding(inner, side, embedding, dropout_rate, **layer) if embedding else None
    if embedding:
      self.finish(embedding, 1)

  def trunk(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
    """See `convolutions.Encoder`; an embedding is a map of one place."""
    x = self.stem(x, train=train)
    if self.prelu is None:
      x = nnx.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))  # what is around counts for nothing
    else:
      x = self.prelu(x)
    for block in self.blocks:
      x = block(x, train=train)
    return x if self.embedding is None else self.embedding(x, train=train, rngs=rngs)


class Block(nnx.Module):
  """Two convolutions 3x3, or a bottleneck of three, added to their input, and ReLU of the sum.

  Attributes:
    width: channels that come out.
  """

  def __init__(
    self, inner: int, width: int, stride: int, *, bottleneck: str | None, gate: bool, **layer: Any
  ) -> None:
    """Builds the block.

    Args:
      inner: channels that come in.
      width: channels of a convolution 3x3.
      stride: of the block.
      bottleneck: which of its convolutions has the stride, one of `STRIDED`; None: no bottleneck.
      gate: whether the channels that are added are gated.
      **layer: see `Convolution`.
    """
    active = layer | {"activation": jax.nn.relu}
    if bottleneck:
      self.width = _EXPANSION * width
      first, second = (stride, 1) if bottleneck == "1x1" else (1, stride)
      layers = [
        Convolution((inner, width), stride=first, **active),
        Convolution((3, 3, width, width), stride=second, padding=1, **active),
        Convolution((width, self.width), **layer),
      ]
    else:
      self.width = width
      layers = [
        Convolution((3, 3, inner, width), stride=stride, padding=1, **active),
        Convolution((3, 3, width, width), padding=1, **layer),
      ]
    self.layers = nnx.List(layers)
    self.gate = _gate(self.width, use_bias=True, **layer) if gate else None
    same = stride == 1 and inner == self.width
    self.shortcut = None if same else Convolution((inner, self.width), stride=stride, **layer)

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps [batch, height, width, inner] to [batch, height / stride, width / stride, width]."""
    y = x
    for layer in self.layers:
      y = layer(y, train=train)
    y = y if self.gate is None else self.gate(y)
    x = x if self.shortcut is None else self.shortcut(x, train=train)
    return jax.nn.relu(x + y)


class Improved(nnx.Module):
  """A unit of faces: norm, convolution, norm, PReLU, convolution, norm, added to its input.

  Attributes:
    width: channels that come out.
  """

  def __init__(
    self, inner: int, width: int, stride: int, *, lean: bool, gate: bool, **layer: Any
  ) -> None:
    """Builds the unit.

    Args:
      inner: channels that come in.
      width: channels that come out.
      stride: of the second convolution.
      lean: whether there is no norm after the first convolution, and an input that has as many
        channels as come out is passed on as it is, at every `stride`-th place.
      gate: whether the channels that are added are gated.
      **layer: see `Convolution`.
    """
    self.width, self._stride = width, stride
    common = dict(use_bias=False, dtype=layer["dtype"], rngs=layer["rngs"])
    initial = nnx.initializers.he_normal()
    self.norm = norm_of(channels=inner, use_bias=True, **layer)
    self.first = nnx.Conv(inner, width, (3, 3), padding=1, kernel_init=initial, **common)
    self.middle = None if lean else norm_of(channels=width, use_bias=True, **layer)
    self.prelu = PReLU(width)
    self.last = Convolution((3, 3, width, width), stride=stride, padding=1, **layer)
    self.gate = _gate(width, use_bias=False, **layer) if gate else None
    same = inner == width and (lean or stride == 1)
    self.shortcut = None if same else Convolution((inner, width), stride=stride, **layer)

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps [batch, height, width, inner] to [batch, height / stride, width / stride, width]."""
    y = self.first(normalise(self.norm, x, train=train))
    y = self.prelu(normalise(self.middle, y, train=train))
    y = self.last(y, train=train)
    y = y if self.gate is None else self.gate(y)
    if self.shortcut is None:
      x = x[:, :: self._stride, :: self._stride]
    else:
      x = self.shortcut(x, train=train)
    return x + y


class Embedding(nnx.Module):
  """A whole map as one vector, as in ArcFace: norm, dropout, a product, norm."""

  def __init__(
    self, channels: int, side: int, size: int, dropout_rate: float, **layer: Any
  ) -> None:
    """Builds the layer.

    Args:
      channels: of the map.
      side: its rows, and columns.
      size: of the vector.
      dropout_rate: before the product.
      **layer: see `Convolution`.
    """
    self.norm = norm_of(channels=channels, use_bias=True, **layer)
    self.dropout = nnx.Dropout(dropout_rate)
    common = dict(dtype=layer["dtype"], rngs=layer["rngs"])
    self.dense = nnx.Linear(side * side * channels, size, **common)
    self.last = norm_of(channels=size, use_bias=True, **layer)

  def __call__(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
    """Maps [batch, side, side, channels] to [batch, 1, 1, size]."""
    x = normalise(self.norm, x, train=train)
    x = self.dropout(x, deterministic=not train, rngs=rngs)
    return normalise(self.last, self.dense(x.reshape(x.shape[0], 1, 1, -1)), train=train)


class PReLU(nnx.Module):
  """A learned share of what is below 0 (He et al., 2015, arXiv:1502.01852), channel by channel."""

  def __init__(self, channels: int) -> None:
    """Builds the layer."""
    self.slope = nnx.Param(jnp.full(channels, 0.25))

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [batch, height, width, channels] to the same."""
    slope = self.slope[...].astype(x.dtype).reshape(1, 1, 1, -1)
    return jnp.where(x > 0, x, slope * x)


def options_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
  """The options of a ResNet whose arrays have these shapes, by name.

  Raises:
    ValueError: there is none.
  """
  has = lambda ending: any(name.endswith(ending) for name in shapes)
  faces, bottleneck = has("/first/kernel"), has("/layers/2/kernel")
  kind = "original" if not faces else "improved" if has("/middle/scale") else "evolve"
  last = "last" if faces else f"layers/{1 + bottleneck}"
  count = len({name.split("/")[1] for name in shapes if name.startswith("blocks/")})
  found = [math.prod(shapes.get(f"blocks/{index}/{last}/bias", (0,))) for index in range(count)]
  counts = tuple(len(list(same)) for _, same in itertools.groupby(found))
  options = {"kind": kind, "stages": len(counts), "gates": has("/gate/reduce/kernel")}
  options |= {"embedding": math.prod(shapes.get("embedding/last/bias", (0,)))}
  options |= {"multiplier": math.prod(shapes.get("stem/bias", (0,))) / _WIDTHS[0]}
  for depth in _STAGES:
    fits = counts == _stages(kind, depth)[: len(counts)]
    if counts and fits and bottleneck == (not faces and depth >= _BOTTLENECK):
      return options | {"depth": depth}
  raise ValueError(f"no ResNet of depth {list(_STAGES)} has {count} blocks of these sizes: {found}")


def _check(*, depth: int, stages: int, embedding: int, **named: str) -> None:
  """Raises ValueError for an option that does not exist."""
  for field, value, has in (
    ("kind", named["kind"], KINDS),
    ("depth", depth, tuple(_STAGES)),
    ("norm", named["norm"], NORMS),
    ("stride_in", named["stride_in"], STRIDED),
  ):
    if value not in has:
      raise ValueError(f"{field} {value!r} of a ResNet: use one of {list(has)}")
  if embedding < 0:
    raise ValueError(f"embedding {embedding} of a ResNet: use the size of a vector, or 0")
  if not 1 <= stages <= len(_WIDTHS):
    raise ValueError(f"stages {stages} of a ResNet: it has 1 to {len(_WIDTHS)}")
  if named["kind"] != "original" and named["norm"] == "none":
    raise ValueError(
      f"norm 'none' of a ResNet of kind {named['kind']!r}: its units begin with a norm, which no"
      " convolution can take in; use 'batch' or 'group'"
    )


def _stages(kind: str, depth: int) -> tuple[int, ...]:
  """Blocks of each stage."""
  return (_STAGES if kind == "original" else _STAGES_OF_FACES)[depth]


def _gate(channels: int, *, use_bias: bool, dtype: jnp.dtype, rngs: nnx.Rngs, **_: Any) -> Gate:
  inside = max(channels // _REDUCTION, 1)
  return Gate(channels, inside, dtype, rngs, activation=jax.nn.relu, use_bias=use_bias)
