"""Transformer blocks: attention within and between streams, MLP, drop path.

What every module here keeps to. Sizes and `rngs` go to the constructor; `train` and `rngs` (with
a "dropout" stream, needed only while training with a rate above 0) go to the call, so one module
serves training and evaluation. No key is stored. Parameters are float32 and activations `dtype`;
softmax and LayerNorms are float32 always, what follows them rounds.
"""

import jax
import jax.numpy as jnp
from flax import nnx

_MLP_INIT = nnx.initializers.xavier_uniform()
_GELU_IS_TANH = {"tanh": True, "exact": False}


class Block(nnx.Module):
  """Pre-LN transformer block: self-attention, then MLP, each added to its input.

  Layer norm before each part and none after the sum (Xiong et al., 2020, arXiv:2002.04745), as in
  ViT (Dosovitskiy et al., 2021, arXiv:2010.11929).
  """

  def __init__(
    self,
    width: int,
    num_heads: int,
    *,
    dropout_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    layer_scale: float = 0.0,
    gelu: str = "tanh",
    norm_epsilon: float = 1e-6,
    dtype: jnp.dtype = jnp.float32,
    rngs: nnx.Rngs,
  ) -> None:
    """Builds the block.

    Args:
      width: channels in and out.
      num_heads: attention heads; must divide `width`.
      dropout_rate: probability of dropping a unit of what attention or MLP adds.
      drop_path_rate: probability of dropping all that attention or MLP adds to a sample.
      layer_scale: what the channels that attention and MLP add are scaled by at first (Touvron et
        al., 2021, arXiv:2103.17239), each by a weight of its own; 0: no such weights.
      gelu: see `MLP`.
      norm_epsilon: added to the variance in the layer norms.
      dtype: dtype of the activations.
      rngs: source of the parameters' keys.
    """
    norm = dict(epsilon=norm_epsilon, dtype=jnp.float32, rngs=rngs)
    self.attention_norm = nnx.LayerNorm(width, **norm)
    self.attention = Attention(width, num_heads, dtype=dtype, rngs=rngs)
    self.dropout = nnx.Dropout(dropout_rate)
    self.mlp_norm = nnx.LayerNorm(width, **norm)
    self.mlp = MLP(width, dropout_rate=dropout_rate, gelu=gelu, dtype=dtype, rngs=rngs)
    self.drop_path = DropPath(drop_path_rate)
    self.scales = LayerScales(width, layer_scale) if layer_scale else None

  def __call__(
    self,
    x: jax.Array,
    *,
    train: bool = False,
    rngs: nnx.Rngs | None = None,
    attention: bool = False,
    keep: jax.Array | None = None,
    mask: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array | None]:
    """Maps [batch, length, width] to the same; see `Attention` and, for `keep`, `DropPath`."""
    random = dict(deterministic=not train, rngs=rngs)
    scale = self.scales or (lambda y, part: y)
    y, maps = self.attention(self.attention_norm(x), attention=attention, mask=mask)
    x = x + self.drop_path(self.dropout(scale(y, "attention"), **random), **random, keep=keep)
    y = self.mlp(self.mlp_norm(x), train=train, rngs=rngs)
    return x + self.drop_path(scale(y, "mlp"), **random, keep=keep), maps


class LayerScales(nnx.Module):
  """A weight for each channel of what attention and MLP add."""

  def __init__(self, width: int, value: float) -> None:
    """Builds the weights; all are `value` at first."""
    self.attention = nnx.Param(jnp.full(width, value, jnp.float32))
    self.mlp = nnx.Param(jnp.full(width, value, jnp.float32))

  def __call__(self, y: jax.Array, part: str) -> jax.Array:
    """Scales [batch, length, width] of the part, "attention" or "mlp"."""
    return y * getattr(self, part)[...].astype(y.dtype)[None, None]


class CrossBlock(nnx.Module):
  """Pre-LN block whose queries look at another stream, which is read as it is; then MLP."""

  def __init__(
    self,
    width: int,
    num_heads: int,
    *,
    dropout_rate: float = 0.0,
    dtype: jnp.dtype = jnp.float32,
    rngs: nnx.Rngs,
  ) -> None:
    """Builds the block; arguments as in `Block`, `width` for both streams."""
    self.attention_norm = nnx.LayerNorm(width, dtype=jnp.float32, rngs=rngs)
    self.attention = CrossAttention(width, num_heads, dtype=dtype, rngs=rngs)
    self.dropout = nnx.Dropout(dropout_rate)
    self.mlp_norm = nnx.LayerNorm(width, dtype=jnp.float32, rngs=rngs)
    self.mlp = MLP(width, dropout_rate=dropout_rate, dtype=dtype, rngs=rngs)

  def __call__(
    self,
    x: jax.Array,
    context: jax.Array,
    bias: jax.Array | None = None,
    *,
    train: bool = False,
    rngs: nnx.Rngs | None = None,
    attention: bool = False,
  ) -> tuple[jax.Array, jax.Array | None]:
    """Maps [batch, queries, width] to the same, given `context` [batch, keys, width]."""
    y, maps = self.attention(self.attention_norm(x), context, bias, attention=attention)
    x = x + self.dropout(y, deterministic=not train, rngs=rngs)
    return x + self.mlp(self.mlp_norm(x), train=train, rngs=rngs), maps


class Attention(nnx.Module):
  """Multi-head self-attention (Vaswani et al., 2017, arXiv:1706.03762), one matrix for q, k, v."""

  def __init__(
    self, width: int, num_heads: int, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs
  ) -> None:
    """Builds the layer; `num_heads` must divide `width`."""
    _check_heads(width, num_heads)
    self.num_heads = num_heads
    # Flax's default init (variance 1 / fan-in) is what Xavier gives to each of the three alone.
    self.query_key_value = nnx.Linear(width, 3 * width, dtype=dtype, rngs=rngs)
    self.out = nnx.Linear(width, width, dtype=dtype, rngs=rngs)

  def __call__(
    self, x: jax.Array, *, attention: bool = False, mask: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array | None]:
    """Lets every position look at every position.

    Args:
      x: [batch, length, width].
      attention: whether to give the maps.
      mask: [batch, queries, keys] bool, where a position may look, at one at least; None:
        everywhere.

    Returns:
      [batch, length, width], and the float32 maps [batch, heads, queries, keys] whose rows sum
      to 1, or None if they were not asked for.
    """
    query, key, value = _split_dense(self.query_key_value, x, 3)
    y, maps = _attend(query, key, value, self.num_heads, mask=mask)
    return self.out(y), maps if attention else None


class CrossAttention(nnx.Module):
  """Multi-head attention with queries from one stream, keys and values from another."""

  def __init__(
    self,
    width: int,
    num_heads: int,
    *,
    temperature: float = 1.0,
    dtype: jnp.dtype = jnp.float32,
    rngs: nnx.Rngs,
  ) -> None:
    """Builds the layer.

    Args:
      width: channels of both streams.
      num_heads: attention heads; must divide `width`.
      temperature: > 0, what the logits are divided by.
      dtype: dtype of the activations.
      rngs: source of the parameters' keys.
    """
    _check_heads(width, num_heads)
    self.num_heads, self.temperature = num_heads, temperature
    self.query = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
    self.key_value = nnx.Linear(width, 2 * width, dtype=dtype, rngs=rngs)
    self.out = nnx.Linear(width, width, dtype=dtype, rngs=rngs)

  def __call__(
    self,
    x: jax.Array,
    context: jax.Array,
    bias: jax.Array | None = None,
    *,
    attention: bool = False,
  ) -> tuple[jax.Array, jax.Array | None]:
    """Lets every position of `x` look at every position of `context`.

    Args:
      x: [batch, queries, width].
      context: [batch, keys, width].
      bias: [heads, queries, keys] float32, added to the logits.
      attention: whether to give the maps.

    Returns:
      [batch, queries, width], and the maps as `Attention` gives them.
    """
    key, value = _split_dense(self.key_value, context, 2)
    scale = dict(temperature=self.temperature)
    y, maps = _attend(self.query(x), key, value, self.num_heads, bias, **scale)
    return self.out(y), maps if attention else None


class MLP(nnx.Module):
  """Two dense layers with a GELU between, four times as wide inside.

  GELU is in its tanh approximation by default, which differs from the exact one by less than 5e-4
  and takes half its time forward, two thirds backward, on a CPU (3,136 x 1,536 float32, two cores).
  """

  def __init__(
    self,
    width: int,
    *,
    dropout_rate: float = 0.0,
    gelu: str = "tanh",
    dtype: jnp.dtype = jnp.float32,
    rngs: nnx.Rngs,
  ) -> None:
    """Builds the layer; dropout follows each of the dense layers, `gelu` is "tanh" or "exact"."""
    if gelu not in _GELU_IS_TANH:
      raise ValueError(f"gelu {gelu!r}: use one of {list(_GELU_IS_TANH)}")
    self.gelu = gelu
    dense = dict(dtype=dtype, kernel_init=_MLP_INIT, rngs=rngs)
    self.expand = nnx.Linear(width, 4 * width, **dense)
    self.contract = nnx.Linear(4 * width, width, **dense)
    self.dropout = nnx.Dropout(dropout_rate)

  def __call__(
    self, x: jax.Array, *, train: bool = False, rngs: nnx.Rngs | None = None
  ) -> jax.Array:
    """Maps [..., width] to the same."""
    random = dict(deterministic=not train, rngs=rngs)
    x = self.dropout(nnx.gelu(self.expand(x), approximate=_GELU_IS_TANH[self.gelu]), **random)
    return self.dropout(self.contract(x), **random)


class DropPath(nnx.Dropout):
  """Drops all of a sample's [length, width] at once, and scales up what stays.

  Stochastic depth (Huang et al., 2016, arXiv:1603.09382), drawn per sample and not per batch.
  Called as a Dropout is, on what a block adds to its input.
  """

  def __init__(self, rate: float) -> None:
    super().__init__(rate, broadcast_dims=(-2, -1))

  def __call__(
    self,
    x: jax.Array,
    *,
    deterministic: bool | None = None,
    rngs: nnx.Rngs | None = None,
    keep: jax.Array | None = None,
  ) -> jax.Array:
    """Drops samples of [batch, length, width].

    Args:
      x: what a block adds to its input.
      deterministic: True: nothing is dropped.
      rngs: holds a "dropout" stream unless `deterministic`.
      keep: float32 scalar in [0, 1], in place of 1 - rate: for a block that stands for several
        layers, whose rates are numbers only while it runs. It draws what a layer of that rate does.
    """
    if keep is None or deterministic:
      return super().__call__(x, deterministic=deterministic, rngs=rngs)
    if rngs is None:
      raise ValueError("drop path while training needs rngs with a 'dropout' stream")
    stream = rngs["dropout"]
    kept = jax.random.bernoulli(stream(), keep, (x.shape[0], 1, 1))
    # A layer that drops nothing uses up no key where that is known beforehand; so here too.
    stream.count[...] -= (keep == 1).astype(stream.count[...].dtype)
    return jnp.where(kept, x / jnp.where(keep > 0, keep, 1).astype(x.dtype), 0)


def _check_heads(width: int, num_heads: int) -> None:
  if width % num_heads:
    raise ValueError(f"width {width} is not a multiple of num_heads {num_heads}: change either")


def _split_dense(dense: nnx.Linear, x: jax.Array, parts: int) -> list[jax.Array]:
  """What `dense` gives for [batch, length, width], in equal parts.

  Each has its bias added on its own: on the way back a TPU sums it up where the part's gradient is
  made, instead of in another pass over all of them.
  """
  kernel, bias = (p[...].astype(dense.dtype) for p in (dense.kernel, dense.bias))
  products = jnp.split(x.astype(dense.dtype) @ kernel, parts, axis=-1)
  return [y + b[None, None] for y, b in zip(products, jnp.split(bias, parts), strict=True)]


def _attend(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  num_heads: int,
  bias: jax.Array | None = None,
  mask: jax.Array | None = None,
  temperature: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
  """[batch, queries, width] and the maps; plain products, which nothing on a CPU beats."""
  heads = lambda x: x.reshape(*x.shape[:2], num_heads, -1)
  query, key, value = heads(query), heads(key), heads(value)
  logits = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
  logits = logits * (query.shape[-1] ** -0.5 / temperature)
  if bias is not None:
    logits = logits + bias[None]
  if mask is not None:
    logits = jnp.where(mask[:, None], logits, -jnp.inf)
  maps = jax.nn.softmax(logits)
  y = jnp.einsum("bhqk,bkhd->bqhd", maps.astype(value.dtype), value)
  return y.reshape(*y.shape[:2], -1), maps
