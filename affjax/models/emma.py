"""EMMA: valence and arousal from the scores of expressions and action units."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from affjax.build import build
from affjax.models.affect import AffectModel
from affjax.models.decoders import Heads, read_layout

_PACKAGE = "affjax.models"
SOURCES = ("scores", "features")
POOLS = ("mean", "first")
_DISTRIBUTION = "expression"
_VA = "va"


class EMMA(AffectModel):
  """An encoder, a second network that knows expressions, and a head of both their scores.

  Li et al. (2022, arXiv:2207.11679): a ViT gives logits of expressions and units, a CNN that is
  done with learning gives logits of expressions from the same image, and valence and arousal are
  made of these numbers alone: `Scores`.

  The second network's batch norms go by their statistics, while training too. There they do not
  (CODE), so that a network that is called frozen drifts. Its parameters stay where they are by a
  group of the optimiser, `freeze=True`.
  """

  def __init__(
    self,
    *,
    encoder: Mapping[str, Any],
    decoder: Mapping[str, Any],
    outputs: Mapping[str, int],
    image_size: int,
    prior: Mapping[str, Any] | None = None,
    dtype: str | jnp.dtype = "float32",
    rngs: nnx.Rngs,
  ) -> None:
    """Builds the model.

    Args:
      encoder: `name`, such as "vit.ViT", and the arguments of its constructor.
      decoder: the same, "emma.Scores".
      outputs: task -> size of its output: "va", and "expression" or "au".
      image_size: height and width of the images in pixels.
      prior: a model of expressions, "affect.AffectModel" and its arguments; None: there is none,
        and the head has the encoder's scores alone.
      dtype: dtype of the activations, such as "bfloat16"; parameters and outputs are float32.
      rngs: source of the parameters' keys.

    Raises:
      ValueError: a section is wrong, or a prior has nothing to give.
    """
    if prior and _DISTRIBUTION not in outputs:
      raise ValueError(f"config.model.prior knows {_DISTRIBUTION}s, and config.labels has none")
    if "beside" in decoder:
      raise ValueError("config.model.decoder.beside follows from config.model.prior; remove it")
    if decoder.get("pool") == "first" and not encoder.get("class_token"):
      raise ValueError(
        "config.model.decoder.pool='first' reads the class token, and the encoder has none: use"
        " config.model.encoder.class_token=True, or pool='mean'"
      )
    beside = outputs[_DISTRIBUTION] if prior else 0
    common = dict(image_size=image_size, dtype=dtype, rngs=rngs)
    super().__init__(
      encoder=encoder, decoder=dict(decoder) | dict(beside=beside), outputs=outputs, **common
    )
    own = {_DISTRIBUTION: beside}
    self.prior = build(prior, _PACKAGE, outputs=own, **common) if prior else None

  def _beside(self, images: jax.Array, present: jax.Array | None) -> dict[str, jax.Array]:
    """[frames, expressions] logits of the second network, which is never told that it trains."""
    if self.prior is None:
      return {}
    return {"beside": self.prior(self._frames(images, present))[_DISTRIBUTION]}

  def _vector(self, tokens: jax.Array) -> jax.Array:
    """[frames, width] float32, what the scores are read from."""
    return self.decoder.pooled(tokens)


class Scores(nnx.Module):
  """Two small networks in a row: features -> scores of expressions and units -> valence, arousal.

  Of Li et al. (2022, arXiv:2207.11679): 768 -> 512, ReLU, -> 8 and 12 logits; these and 8 of a
  second network -> 256, ReLU, -> 2: CODE. The loss of valence and arousal also moves the logits
  that they are made of: INFERRED, as nothing is known to keep it from that. First weights of the
  outputs are near 0, as those of `decoders.TaskTokens`: INFERRED.

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
    beside: int = 0,
    width: int = 512,
    va_width: int = 256,
    va_from: str = "scores",
    pool: str = "mean",
    va_activation: str = "identity",
    dtype: str | jnp.dtype = "float32",
    rngs: nnx.Rngs,
  ) -> None:
    """Builds the decoder. It is float32 whatever `dtype` is.

    Args:
      outputs: task -> size of its output: "va", and "expression" or "au".
      input_width: channels of the encoder's tokens.
      input_length: their number.
      beside: how many scores come from elsewhere.
      width: of the hidden layer of expressions and units.
      va_width: of that of valence and arousal.
      va_from: "scores"; or "features", to compare: what the scores are read from.
      pool: "mean" of all tokens, or the "first", a ViT's class token.
      va_activation: see `decoders.TaskTokens`.
      dtype: not used.
      rngs: source of the parameters' keys.

    Raises:
      ValueError: an option that does not exist, a size below 1, or tasks that are missing.
    """
    del dtype, input_length
    for name, value, allowed in (("va_from", va_from, SOURCES), ("pool", pool, POOLS)):
      if value not in allowed:
        raise ValueError(f"config.model.decoder.{name}={value!r}: use one of {list(allowed)}")
    for name, size in (("width", width), ("va_width", va_width)):
      if size < 1:
        raise ValueError(f"config.model.decoder.{name}={size}: use 1 or more")
    scored = {task: size for task, size in outputs.items() if task != _VA}
    if _VA not in outputs or not scored:
      raise ValueError(
        f"emma.Scores makes va of the scores of expression and au, and config.labels has"
        f" {', '.join(outputs)}: use va and one of these at least"
      )
    self.va_from, self.pool = va_from, pool
    heads = lambda own, width: Heads(
      read_layout(own, "task", None)[0], width, va_activation, shared=False, heteroscedastic=False,
      rngs=rngs,
    )  # fmt: skip
    self.hidden = nnx.Linear(input_width, width, rngs=rngs)
    self.heads = heads(scored, width)
    given = input_width if va_from == "features" else sum(scored.values()) + beside
    self.va_hidden = nnx.Linear(given, va_width, rngs=rngs)
    self.va_heads = heads({_VA: outputs[_VA]}, va_width)

  def __call__(
    self,
    tokens: jax.Array,
    beside: jax.Array | None = None,
    *,
    train: bool = False,
    rngs: nnx.Rngs | None = None,
    attention: bool = False,
  ) -> dict[str, jax.Array] | tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Decodes every task.

    Args:
      tokens: [batch, length, input_width] of the encoder.
      beside: [batch, beside] scores from elsewhere; None where there are none.
      train: it makes no difference, nor does `rngs`.
      rngs: see there.
      attention: whether to give maps too; there are none.

    Returns:
      Task -> [batch, size] float32; with `attention` also {}.
    """
    del train, rngs
    features = self.pooled(tokens)
    outputs = _read(self.heads, jax.nn.relu(self.hidden(features)))
    given = features
    if self.va_from == "scores":
      # By name: a config that is read again may have its labels in another order.
      scores = [outputs[task] for task in sorted(outputs)]
      given = jnp.concatenate([*scores, *([] if beside is None else [beside])], axis=1)
    outputs |= _read(self.va_heads, jax.nn.relu(self.va_hidden(given)))
    return (outputs, {}) if attention else outputs

  def pooled(self, tokens: jax.Array) -> jax.Array:
    """[batch, input_width] float32, what the scores are read from."""
    tokens = tokens.astype(jnp.float32)
    return tokens[:, 0] if self.pool == "first" else tokens.mean(axis=1)


def _read(heads: Heads, hidden: jax.Array) -> dict[str, jax.Array]:
  """All heads of one vector, [batch, width]."""
  return heads(jnp.repeat(hidden[:, None], len(heads.spans), axis=1))
