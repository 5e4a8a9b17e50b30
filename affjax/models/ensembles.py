"""Several networks of one kind, whose outputs are averaged."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from affjax.build import build

_PACKAGE = "affjax.models"
_MOST = 16  # networks; who asks for more is mistaken


class Ensemble(nnx.Module):
  """Networks that are built alike and start from other random numbers; it stands where one does.

  What it gives is the mean of what they give. Of logits the mean has the same largest class as
  their sum, which is what Li et al. (2022, arXiv:2207.11679) decide by; its probabilities are the
  less certain ones.

  Parameters are called "model/members/<i>/...", and behind that as they are in one network alone.
  The first begins with the numbers that a network alone would begin with.

  Attributes:
    members: the networks.
    input_shape: of an image without the batch.
  """

  def __init__(
    self,
    *,
    members: int = 2,
    network: str = "affect.AffectModel",
    outputs: Mapping[str, int],
    image_size: int,
    dtype: str | jnp.dtype = "float32",
    rngs: nnx.Rngs,
    **sections: Any,
  ) -> None:
    """Builds the networks.

    Args:
      members: how many.
      network: name of what each of them is.
      outputs: task -> size of its output.
      image_size: height and width of the images in pixels.
      dtype: dtype of the activations; parameters and outputs are float32.
      rngs: source of the parameters' keys.
      **sections: what else a network takes, such as `encoder` and `decoder`.

    Raises:
      ValueError: no number of networks, or what the network refuses.
    """
    if not 1 <= members <= _MOST:
      raise ValueError(f"config.model.members={members}: use 1 to {_MOST}")
    given = dict(outputs=outputs, image_size=image_size, dtype=dtype, rngs=rngs)
    section = {"name": network, **sections}
    self.members = nnx.List(build(section, _PACKAGE, **given) for _ in range(members))
    self.input_shape = self.members[0].input_shape

  @property
  def decoder(self) -> nnx.Module:
    """That of the first, whose tokens are called as those of all."""
    return self.members[0].decoder

  def __call__(
    self,
    images: jax.Array,
    present: jax.Array | None = None,
    *,
    train: bool = False,
    rngs: nnx.Rngs | None = None,
    attention: bool = False,
  ) -> dict[str, jax.Array] | tuple[dict[str, jax.Array], Any]:
    """Predicts every task.

    Args:
      images: as the networks take them, see `affect.AffectModel`.
      present: likewise.
      train: whether they learn. Each draws masks and dropout of its own.
      rngs: holds a "dropout" stream while training with a rate above 0.
      attention: whether to give the attention maps too.

    Returns:
      Name -> what the networks give under it, their mean; while training also "NAME/<i>", what
      network i gives. With `attention` also the maps as one network gives them, all networks' heads
      side by side.
    """
    options = dict(train=train, rngs=rngs, attention=attention)
    given = [member(images, present, **options) for member in self.members]
    outputs, maps = zip(*given, strict=True) if attention else (given, ())
    found = _mean(outputs)
    if train:
      found |= {f"{name}/{i}": y for i, own in enumerate(outputs) for name, y in own.items()}
    if not attention:
      return found
    return found, jax.tree.map(lambda *heads: jnp.concatenate(heads, axis=2), *maps)

  def features(self, images: jax.Array, present: jax.Array | None = None) -> dict[str, jax.Array]:
    """What a call gives, and "features": those of all networks, one behind the other."""
    given = [member.features(images, present) for member in self.members]
    vectors = [own.pop("features") for own in given]
    return _mean(given) | {"features": jnp.concatenate(vectors, axis=-1)}


def _mean(outputs: Sequence[Mapping[str, jax.Array]]) -> dict[str, jax.Array]:
  return {name: sum(own[name] for own in outputs) / len(outputs) for name in outputs[0]}
