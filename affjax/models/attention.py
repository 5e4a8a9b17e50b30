"""Attention over the map of a CNN: decoders that say where, and which channels, count."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from affjax.models.convolutions import Convolution, norm_of, normalise
from affjax.models.decoders import Heads, read_layout

_EPSILON, _MOMENTUM = 1e-5, 0.9  # of batch norms, as in PyTorch
_DISTRIBUTION = "expression"


class DAN(nnx.Module):
  """Heads of spatial and channel attention that are made to differ, and one dense layer a task.

  "Distract your attention" (Wen, Lin, Wang & Xu, 2021, arXiv:2109.07270), as Li et al. (2022,
  arXiv:2207.11679) use it: four heads over the 512 channels of a ResNet-18's last map. Their
  vectors are stacked, the log-softmax over the heads is summed over them, then come a dense layer
  and, of expressions, a batch norm: CODE. Of other tasks there is none: INFERRED, there are none.

  The convolutions there have biases before their norms too, which these take away again.

  Attributes:
    num_extra: 0, it has no tokens for the encoder to carry.
    by_place: True, it needs the image's token of every place.
  """

  num_extra = 0
  by_place = True

  def __init__(
    self,
    *,
    outputs: Mapping[str, int],
    input_width: int,
    input_length: int,
    num_heads: int = 4,
    va_activation: str = "tanh",
    dtype: str | jnp.dtype = "float32",
    rngs: nnx.Rngs,
  ) -> None:
    """Builds the decoder.

    Args:
      outputs: task -> size of its output.
      input_width: channels of the map.
      input_length: its places, those of a square.
      num_heads: how many there are, at least 2.
      va_activation: see `decoders.TaskTokens`.
      dtype: dtype of the maps; what comes of them is float32.
      rngs: source of the parameters' keys.

    Raises:
      ValueError: the tokens are no square map, or a number out of its range.
    """
    self.side = math.isqrt(input_length)
    if self.side**2 != input_length:
      raise ValueError(
        f"attention.DAN reads a square map, and the encoder gives {input_length} tokens: use a"
        " convolutional one with config.model.encoder.grid=0"
      )
    for name, value, least in (("num_heads", num_heads, 2), ("input_width", input_width, 16)):
      if value < least:
        raise ValueError(f"{name} {value} of attention.DAN: use {least} or more")
    layer = dict(dtype=jnp.dtype(dtype), rngs=rngs)
    self.attention = nnx.List([AttentionHead(input_width, **layer) for _ in range(num_heads)])
    spans, _ = read_layout(outputs, "task", None)
    options = dict(shared=False, heteroscedastic=False)
    self.heads = Heads(spans, input_width, va_activation, **options, rngs=rngs)
    classes = outputs.get(_DISTRIBUTION, 0)
    self.last_norm = _norm(classes, dtype=jnp.float32, rngs=rngs) if classes else None

  def __call__(
    self,
    tokens: jax.Array,
    *,
    train: bool = False,
    rngs: nnx.Rngs | None = None,
    attention: bool = False,
  ) -> dict[str, jax.Array] | tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Decodes every task: [batch, places, input_width] -> task -> [batch, size] float32.

    With `train` batch norms take, and follow, the batch's statistics. With `attention` also {}:
    the maps of a head are of no label.
    """
    del rngs
    x = tokens.reshape(tokens.shape[0], self.side, self.side, tokens.shape[2])
    vectors = [head(x, train=train)[:, None] for head in self.attention]
    y = jax.nn.log_softmax(jnp.concatenate(vectors, axis=1), axis=1).sum(1, keepdims=True)
    outputs = self.heads(jnp.repeat(y, len(self.heads.spans), axis=1))
    if self.last_norm is not None:
      outputs[_DISTRIBUTION] = normalise(self.last_norm, outputs[_DISTRIBUTION], train=train)
    return (outputs, {}) if attention else outputs


class AttentionHead(nnx.Module):
  """A map -> a vector: its places are weighted, and then the channels of their mean.

  Places: half of the channels, 1 x 1; three convolutions of those, 3 x 3, 1 x 3 and 3 x 1, all with
  norms; ReLU of their sum, summed over the channels: CODE. Channels: a gate of two dense layers, a
  sixteenth as wide inside: CODE; a norm and ReLU between them: RECALL.
  """

  def __init__(self, channels: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
    """Builds the layers; `channels` of the map, `dtype` of what is done at its places."""
    layer = dict(norm="batch", epsilon=_EPSILON, momentum=_MOMENTUM, dtype=dtype, rngs=rngs)
    half, inside = channels // 2, channels // 16
    self.reduce = Convolution((channels, half), **layer)
    kernels = ((3, 3), (1, 3), (3, 1))
    self.places = nnx.List([Convolution((*size, half, channels), **layer) for size in kernels])
    self.squeeze = nnx.Linear(channels, inside, rngs=rngs)
    self.squeeze_norm = _norm(inside, dtype=jnp.float32, rngs=rngs)
    self.expand = nnx.Linear(inside, channels, rngs=rngs)

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps [batch, side, side, channels] to [batch, channels] float32."""
    y = self.reduce(x, train=train)
    y = jax.nn.relu(sum(convolution(y, train=train) for convolution in self.places))
    weights = y.astype(jnp.float32).sum(-1, keepdims=True)
    vector = (x.astype(jnp.float32) * weights).mean((1, 2))
    inside = normalise(self.squeeze_norm, self.squeeze(vector), train=train)
    return vector * jax.nn.sigmoid(self.expand(jax.nn.relu(inside)))


def _norm(channels: int, **options: Any) -> nnx.BatchNorm:
  common = dict(epsilon=_EPSILON, momentum=_MOMENTUM, use_bias=True)
  return norm_of("batch", channels, **common, **options)
