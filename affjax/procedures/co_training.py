"""Networks that learn the same from other views, and are to agree."""

import inspect
import numbers
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from affjax import losses
from affjax.procedures import supervised

_TASK = "expression"  # what they are to agree on


class CoTraining(supervised.Supervised):
  """Supervised learning of an ensemble, each network for itself, and agreement on expressions.

  Li et al. (2022, arXiv:2207.11679), Masked CoTEX: two networks see other patches of each image,
  and their expressions are to be the same. What is minimised is the mean over the networks of what
  `supervised.Supervised` minimises (CODE: of the cross-entropies), and `agreement` times the
  divergence of Jensen and Shannon between the distributions that they give.

  CODE: the factor is 100 of a divergence that is a mean over the classes too, so 100 / classes of
  this one, which sums over them, as the definition does: 100 / 6 of six. INFERRED: rows without an
  expression have no say; in the authors' data there are none.

  A single network has nobody to agree with: it learns as by `supervised.Supervised`, to the bit.
  """

  def __init__(self, *, agreement: float, **options: Any) -> None:
    """Builds the functions; no array is made.

    Args:
      agreement: factor >= 0 of the divergence, in nats; 0: the networks know nothing of each other.
      **options: as `supervised.Supervised` takes them; `make_model` builds an
        `ensembles.Ensemble`.

    Raises:
      ValueError: options that do not exist or do not go together; it says what does.
    """
    allowed = list(inspect.signature(supervised.Supervised.__init__).parameters)[1:]
    if unknown := sorted(set(options) - set(allowed)):
      raise ValueError(
        f"co_training.CoTraining takes no {unknown}; it takes {['agreement', *allowed]}"
      )
    if not (isinstance(agreement, numbers.Real) and 0 <= agreement < float("inf")):
      raise ValueError(f"config.procedure.agreement={agreement!r}: use a number >= 0 (0: off)")
    super().__init__(**options)
    model = nnx.eval_shape(lambda: self._make_model(nnx.Rngs(0)))
    if not hasattr(model, "members"):
      raise ValueError(
        "co_training.CoTraining needs several networks: use config.model.name='ensembles.Ensemble',"
        " or config.procedure.name='supervised.Supervised'"
      )
    self._members = len(model.members)
    self._agreement = agreement if self._members > 1 else 0
    if self._agreement and _TASK not in self._losses:
      raise ValueError(
        f"config.procedure.agreement={agreement} is on expressions, and config.labels has none: use"
        " 0"
      )

  def _loss(
    self,
    outputs: Mapping[str, jax.Array],
    params: Any,
    labels: Any,
    mask: Any,
    noise: jax.Array,
  ) -> tuple[jax.Array, supervised.Metrics]:
    """The mean of the networks' losses, and their disagreement."""
    networks = [_of_network(outputs, number) for number in range(self._members)]
    found = [super(CoTraining, self)._loss(own, params, labels, mask, noise) for own in networks]
    total, metrics = jax.tree.map(lambda *x: sum(x) / len(x), *found)
    if not self._agreement:
      return total, metrics
    rows = lambda own: own[_TASK].reshape(-1, own[_TASK].shape[-1])
    apart = losses.jensen_shannon([rows(own) for own in networks], mask[_TASK].reshape(-1))
    return total + self._agreement * apart, metrics | {"loss/agreement": apart}


def _of_network(outputs: Mapping[str, jax.Array], number: int) -> dict[str, jax.Array]:
  """What one network gave, under its own names, of what an ensemble gives while training."""
  end = f"/{number}"
  return {name.removesuffix(end): y for name, y in outputs.items() if name.endswith(end)}
