"""Decoders: from the tokens of an encoder to one output per task."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from affjax.models import layers

_VA_ACTIVATIONS = {"tanh": jnp.tanh, "identity": lambda x: x}
_POOLS = {"mean": jnp.mean, "max": jnp.max}
_LAYOUTS = ("elementary", "mixed", "task")
_POSITIONS = ("decoder", "encoder")
# Spread of the first biases: at 2, half of a head's attention is on about a tenth of the places.
_POSITION_BIAS = 2.0
# What the parameter `position_logits` is multiplied by. Under Adam every number moves by about the
# learning rate a step: with 1, biases would end a run of thousands of steps near where they were
# drawn. (Once they were, as `position_bias`: by the new name, such checkpoints are refused.)
_POSITION_SPEED = 20.0
# Small, so that training starts from near-uniform answers whatever the encoder gives.
_HEAD_INIT = nnx.initializers.normal(0.02)
_DEEPEST = 64  # layers; see `affjax.models.vit`
# Its outputs are logits of one distribution, so one log-variance is that of all of them.
_DISTRIBUTION = "expression"


class TaskTokens(nnx.Module):
  """Learned tokens that stand for tasks, and look at each other and at the image.

  The taskwise-token transformer of Tallec et al. (2022, arXiv:2208.03506), whose full text and
  code we have not seen. CODE is what their repository of the previous challenge does
  (gtallec/DL_ISIR_ABAW3, action units alone); INFERRED is our choice.

  Layouts, for valence and arousal, 8 expressions and 12 units:
  - "elementary": 22 tokens, one for each number that is predicted. CODE for units; that the other
    tasks are cut up likewise is INFERRED.
  - "mixed": 15, as before but for one token of all expressions: INFERRED.
  - "task": 3, one for each task: INFERRED, from the word "taskwise" of the abstract.

  Heads:
  - One dense layer of one output serves all tokens that stand for a number (`shared_head`): CODE.
    A token of several numbers has its own dense layer: INFERRED.
  - A layer for each token instead: INFERRED.
  - softmax over expressions and sigmoid of units are left to losses and metrics; tanh on valence
    and arousal: INFERRED. There are units alone, with a sigmoid.
  - `heteroscedastic`: a second set of heads gives log-variances, 0 at first: INFERRED.

  Position "decoder", the image tokens stay as they are:
  - Width 128, 8 heads, 2 layers, MLP 4 times as wide, dropout 0.1 after attention and after each
    dense layer: CODE. They add one more dropout on the output of each block.
  - A layer is attention among the tokens, then from the tokens to the image, each with its own
    MLP; the image tokens are the same for all layers: CODE.
  - Tokens start from N(0, 1): CODE (there with a shared bias, which adds nothing).
  - Layer norm before attention and MLP, and once before the heads: INFERRED. They put it after the
    sums, which needs a more careful warm-up.
  - The image tokens are projected to the width where it differs: CODE. There they also pass a
    self-attention layer with positions; here the encoder is a transformer and has both: INFERRED.
  - `position_bias`: each head of each layer starts by looking at places of its own, which it then
    learns, twenty times as fast as the rest, as a bias of its attention to the image. Without it
    attention starts out as a plain mean over the image, and the flagship needs thousands of updates
    to leave it: INFERRED.

  Position "encoder", INFERRED as a whole: the tokens go through all blocks of the encoder behind
  its patches, as a ViT's class token does, and the heads read what its last norm gives. Patches
  look at the tokens too, so the image stream is not independent of them. There are no layers here:
  tokens have the encoder's width, and `width`, `depth`, `num_heads`, `dropout_rate` and
  `position_bias` say nothing.

  Attributes:
    token_names: which token is which, in their order: "au" for all of a task, "au/11" for the
      number of that index.
    num_extra: how many tokens the encoder has to carry; 0 in position "decoder".
    by_place: whether it needs the image's token of every place.
  """

  def __init__(
    self,
    *,
    outputs: Mapping[str, int],
    input_width: int,
    input_length: int,
    width: int = 128,
    depth: int = 2,
    num_heads: int = 8,
    layout: str = "task",
    position: str = "decoder",
    shared_head: bool | None = None,
    heteroscedastic: bool = False,
    dropout_rate: float = 0.1,
    va_activation: str = "tanh",
    position_bias: bool = True,
    readout: int = 0,
    dtype: str | jnp.dtype = "float32",
    rngs: nnx.Rngs,
  ) -> None:
    """Builds the decoder.

    Args:
      outputs: task -> size of its output, such as {"va": 2, "expression": 8, "au": 12}.
      input_width: channels of the encoder's tokens.
      input_length: their number, without those that it carries for the decoder.
      width: channels of the task tokens.
      depth: number of layers.
      num_heads: attention heads; must divide `width`.
      layout: "elementary", one token for each number; "mixed", the same but one for all
        expressions; "task", one for each task.
      position: "decoder" or "encoder": where the tokens meet the image.
      shared_head: whether all tokens of a single number share one head; None: yes, where the
        layout has such tokens ("elementary", "mixed").
      heteroscedastic: whether each task also gives "TASK/log_variance".
      dropout_rate: probability of dropping a unit of what attention or MLP adds.
      va_activation: "tanh" keeps the output "va" in (-1, 1); "identity" leaves it free.
      position_bias: whether attention to the image has a learned bias per head, token and place.
      readout: channels of every image token that one dense layer reads all at once; 0: none. What
        it gives is added to the tokens: before the first layer, so that they do not start alike
        for every image; in position "encoder" from the last patches, right before the heads.
      dtype: dtype of the activations; parameters and heads are float32.
      rngs: source of the parameters' keys.

    Raises:
      ValueError: a layout, position or activation that does not exist, sizes that do not divide, or
        a shared head where each token has an output of another size.
    """
    _one_of("position", position, _POSITIONS)
    check_sizes(width, depth, num_heads, readout)
    self.spans, shared_head = read_layout(outputs, layout, shared_head)
    self.token_names = tuple(itertools.chain.from_iterable(span.names for span in self.spans))
    count = len(self.token_names)
    inside = position == "encoder"
    self.num_extra, self.input_length = count if inside else 0, input_length
    if inside:
      width, depth, position_bias = input_width, 0, False
    self.by_place = position_bias or readout > 0
    dtype = jnp.dtype(dtype)
    same = input_width == width
    self.project = None if same else nnx.Linear(input_width, width, dtype=dtype, rngs=rngs)
    self.tokens = nnx.Param(nnx.initializers.normal(1.0)(rngs.params(), (count, width)))
    bias_init = nnx.initializers.normal(_POSITION_BIAS / _POSITION_SPEED)
    bias_shape = (depth, num_heads, count, input_length)
    self.position_logits = (
      nnx.Param(bias_init(rngs.params(), bias_shape)) if position_bias else None
    )
    sizes = dict(channels=readout, input_length=input_length, num_tokens=count)
    self.readout = Readout(input_width, width, **sizes, dtype=dtype, rngs=rngs) if readout else None
    block = dict(dropout_rate=dropout_rate, dtype=dtype, rngs=rngs)
    self.self_blocks = nnx.List(layers.Block(width, num_heads, **block) for _ in range(depth))
    self.cross_blocks = nnx.List(layers.CrossBlock(width, num_heads, **block) for _ in range(depth))
    self.norm = None if inside else nnx.LayerNorm(width, dtype=jnp.float32, rngs=rngs)
    options = dict(shared=shared_head, heteroscedastic=heteroscedastic)
    self.heads = Heads(self.spans, width, va_activation, **options, rngs=rngs)

  def extra(self, batch: int) -> jax.Array:
    """What the encoder carries in position "encoder": [batch, num_extra, input_width] float32."""
    return jnp.broadcast_to(self.tokens[...], (batch, *self.tokens.shape))

  def __call__(
    self,
    tokens: jax.Array,
    *,
    train: bool = False,
    rngs: nnx.Rngs | None = None,
    attention: bool = False,
  ) -> dict[str, jax.Array] | tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Decodes every task.

    Args:
      tokens: [batch, input_length + num_extra, input_width] of the encoder.
      train: whether dropout is on.
      rngs: holds a "dropout" stream while training with a rate above 0.
      attention: whether to give the maps too.

    Returns:
      Task -> [batch, size] float32, and if `heteroscedastic` "TASK/log_variance" -> the same shape,
      [batch, 1] of the expression (the mean over its tokens). With `attention` also "tokens"
      [depth, batch, heads, tasks, tasks] and "image" [depth, batch, heads, tasks, length] in the
      order of `token_names`, all rows summing to 1; in position "encoder" {}, see `cut`.
    """
    if self.num_extra:
      image, x = tokens[:, : -self.num_extra], tokens[:, -self.num_extra :]
      x = x if self.readout is None else x + self.readout(image)
      return (self.heads(x), {}) if attention else self.heads(x)
    options = dict(train=train, rngs=rngs, attention=attention)
    image = tokens if self.project is None else self.project(tokens)
    x = self.extra(tokens.shape[0]).astype(image.dtype)
    if self.readout is not None:
      x = x + self.readout(tokens)
    maps = {"tokens": [], "image": []}
    blocks = zip(self.self_blocks, self.cross_blocks, strict=True)
    for layer, (self_block, cross_block) in enumerate(blocks):
      bias = None
      if self.position_logits is not None:
        bias = self.position_logits[layer] * _POSITION_SPEED
      x, token_maps = self_block(x, **options)
      x, image_maps = cross_block(x, image, bias, **options)
      maps["tokens"].append(token_maps)
      maps["image"].append(image_maps)
    outputs = self.heads(self.norm(x))
    if attention:
      return outputs, {name: jnp.stack(of_layers) for name, of_layers in maps.items()}
    return outputs

  def cut(self, maps: jax.Array) -> dict[str, jax.Array]:
    """The tokens' own part of the maps of an encoder that carried them.

    Args:
      maps: [depth, batch, heads, all, all], the image's tokens first and the task tokens last.

    Returns:
      "tokens" [depth, batch, heads, tasks, tasks] and "image" [depth, batch, heads, tasks, length],
      as in position "decoder", but a row is one softmax over both: its two parts sum to 1 together,
      less what goes to tokens between them, such as a ViT's registers.
    """
    rows = maps[..., -self.num_extra :, :]
    return {"tokens": rows[..., -self.num_extra :], "image": rows[..., : self.input_length]}


class Readout(nnx.Module):
  """A few channels of every image token, then one dense layer of all of them: ours.

  Aligned faces have each feature in its place, so that a linear model of the pixels does well at
  once; attention has to find the places first.
  """

  def __init__(
    self,
    input_width: int,
    width: int,
    *,
    channels: int,
    input_length: int,
    num_tokens: int,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
  ) -> None:
    """Builds the layers."""
    self.num_tokens = num_tokens
    self.reduce = nnx.Linear(input_width, channels, dtype=dtype, rngs=rngs)
    self.dense = nnx.Linear(channels * input_length, num_tokens * width, dtype=dtype, rngs=rngs)

  def __call__(self, tokens: jax.Array) -> jax.Array:
    """[batch, length, input_width] -> [batch, num_tokens, width]."""
    batch = tokens.shape[0]
    return self.dense(self.reduce(tokens).reshape(batch, -1)).reshape(batch, self.num_tokens, -1)


class Linear(nnx.Module):
  """The encoder's tokens, pooled, and one dense layer per task: the baseline.

  Attributes:
    num_extra: 0, it has no tokens for the encoder to carry.
  """

  num_extra = 0

  def __init__(
    self,
    *,
    outputs: Mapping[str, int],
    input_width: int,
    input_length: int,
    heteroscedastic: bool = False,
    va_activation: str = "tanh",
    pool: str = "mean",
    dtype: str | jnp.dtype = "float32",
    rngs: nnx.Rngs,
  ) -> None:
    """Builds the decoder; arguments as in `TaskTokens`. It is float32 whatever `dtype` is.

    Tokens are pooled by `pool`: "mean" or "max".
    """
    del dtype, input_length
    _one_of("pool", pool, _POOLS)
    self.pool = pool
    options = dict(shared=False, heteroscedastic=heteroscedastic)
    self.heads = Heads(_spans(outputs, "task"), input_width, va_activation, **options, rngs=rngs)

  def __call__(
    self,
    tokens: jax.Array,
    *,
    train: bool = False,
    rngs: nnx.Rngs | None = None,
    attention: bool = False,
  ) -> dict[str, jax.Array] | tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Decodes every task as `TaskTokens` does; it has no maps to give."""
    del train, rngs
    pooled = _POOLS[self.pool](tokens.astype(jnp.float32), axis=1, keepdims=True)
    outputs = self.heads(jnp.repeat(pooled, len(self.heads.spans), axis=1))
    return (outputs, {}) if attention else outputs


@dataclasses.dataclass(frozen=True)
class Span:
  """The tokens that stand for a task.

  Attributes:
    task: its name.
    size: of its output.
    first: index of its first token.
    split: whether each number has a token of its own, or all have one.
  """

  task: str
  size: int
  first: int
  split: bool

  @property
  def names(self) -> tuple[str, ...]:
    """Of the tokens."""
    return tuple(f"{self.task}/{i}" for i in range(self.size)) if self.split else (self.task,)

  def of(self, x: jax.Array) -> jax.Array:
    """[batch, tokens, width] of all tasks -> [batch, tokens, width] of this one."""
    return x[:, self.first : self.first + len(self.names)]


def read_layout(
  outputs: Mapping[str, int], layout: str, shared_head: bool | None
) -> tuple[tuple[Span, ...], bool]:
  """The tokens of a layout and whether they share a head; arguments as of `TaskTokens`.

  Raises:
    ValueError: a layout that does not exist, or a shared head where it allows none.
  """
  _one_of("layout", layout, _LAYOUTS)
  shared_head = layout != "task" if shared_head is None else shared_head
  if shared_head and layout == "task":
    raise ValueError(
      "shared_head=True with layout 'task': tasks differ in the size of their outputs; use"
      " shared_head=False, or layout 'elementary' or 'mixed'"
    )
  return _spans(outputs, layout), shared_head


def _spans(outputs: Mapping[str, int], layout: str) -> tuple[Span, ...]:
  spans, first = [], 0
  for task, size in outputs.items():
    split = layout == "elementary" or (layout == "mixed" and task != _DISTRIBUTION)
    spans.append(Span(task, size, first, split))
    first += len(spans[-1].names)
  return tuple(spans)


class Projections(nnx.Module):
  """Float32 dense layers from tokens to numbers: softmax and CCC need digits that bfloat16 lacks.

  A task of one token has a layer of its own. The tokens of all others give one number each, by one
  layer that they share or by a layer each.
  """

  def __init__(
    self,
    spans: tuple[Span, ...],
    sizes: Mapping[str, int],
    width: int,
    *,
    shared: bool,
    kernel_init: nnx.Initializer,
    rngs: nnx.Rngs,
  ) -> None:
    """Builds the layers; `sizes` are those of the tasks of one token."""
    self.spans = spans
    options = dict(kernel_init=kernel_init, rngs=rngs)
    self.dense = nnx.Dict(
      {s.task: nnx.Linear(width, sizes[s.task], **options) for s in spans if not s.split}
    )
    count = sum(len(s.names) for s in spans if s.split)
    own = count and not shared
    self.shared = nnx.Linear(width, 1, **options) if count and shared else None
    self.separate = TokenLinear(count, width, **options) if own else None

  def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
    """Maps [batch, tokens, width] to task -> [batch, tokens], or [batch, size] of a single one."""
    split = self._numbers(x)
    return {s.task: split[s.task] if s.split else self.dense[s.task](x[:, s.first])
            for s in self.spans}  # fmt: skip

  def _numbers(self, x: jax.Array) -> dict[str, jax.Array]:
    """All tokens of one number at once: task -> [batch, tokens]."""
    spans = [s for s in self.spans if s.split]
    if not spans:
      return {}
    x = jnp.concatenate([s.of(x) for s in spans], axis=1)
    y = self.separate(x) if self.shared is None else self.shared(x)[..., 0]
    ends = list(itertools.accumulate(s.size for s in spans))
    return {s.task: y[:, end - s.size : end] for s, end in zip(spans, ends, strict=True)}


class TokenLinear(nnx.Module):
  """A dense layer of one output for each token, all in one product."""

  def __init__(
    self, tokens: int, width: int, *, kernel_init: nnx.Initializer, rngs: nnx.Rngs
  ) -> None:
    """Builds the layers."""
    self.kernel = nnx.Param(kernel_init(rngs.params(), (tokens, width)))
    self.bias = nnx.Param(jnp.zeros(tokens))

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [batch, tokens, width] to [batch, tokens]."""
    return jnp.einsum("btd,td->bt", x, self.kernel[...]) + self.bias[...][None]


class Heads(Projections):
  """Outputs of every task, and log-variances where they are asked for."""

  def __init__(
    self,
    spans: tuple[Span, ...],
    width: int,
    va_activation: str,
    *,
    shared: bool,
    heteroscedastic: bool,
    rngs: nnx.Rngs,
  ) -> None:
    """Builds the heads; see `TaskTokens`."""
    _one_of("va_activation", va_activation, _VA_ACTIVATIONS)
    self.va_activation = va_activation
    sizes = {s.task: s.size for s in spans}
    options = dict(shared=shared, rngs=rngs)
    super().__init__(spans, sizes, width, kernel_init=_HEAD_INIT, **options)
    # Zeros: every variance is 1 at first, as if there were none.
    sizes = {task: 1 if task == _DISTRIBUTION else size for task, size in sizes.items()}
    zeros = dict(kernel_init=nnx.initializers.zeros, **options)
    self.uncertainty = Projections(spans, sizes, width, **zeros) if heteroscedastic else None

  def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
    """Maps [batch, tokens, width] to what `TaskTokens` gives; "va" is activated."""
    x = x.astype(jnp.float32)
    outputs = super().__call__(x)
    if "va" in outputs:
      outputs["va"] = _VA_ACTIVATIONS[self.va_activation](outputs["va"])
    if self.uncertainty is not None:
      for task, s in self.uncertainty(x).items():
        one = task == _DISTRIBUTION
        outputs[f"{task}/log_variance"] = s.mean(1, keepdims=True) if one else s
    return outputs


def check_sizes(width: int, depth: int, num_heads: int, readout: int = 0) -> None:
  """Raises ValueError unless each is in its range; see `TaskTokens`."""
  for name, size in (("width", width), ("num_heads", num_heads)):
    if size < 1:
      raise ValueError(f"{name} {size}: use 1 or more")
  if not 0 <= depth <= _DEEPEST:
    raise ValueError(f"depth {depth}: use 0 to {_DEEPEST}")
  if readout < 0:
    raise ValueError(f"readout {readout}: use 0 or more")


def _one_of(name: str, value: str, allowed: Mapping[str, Any] | tuple[str, ...]) -> None:
  if value not in allowed:
    raise ValueError(f"{name} {value!r}: use one of {list(allowed)}")
