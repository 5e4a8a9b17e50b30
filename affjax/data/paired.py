"""A second data set of which every training batch has a share, beside the first.

As photographs with action units beside the synthetic expressions that are learnt (Mao et al., 2022,
arXiv:2207.09777, whose batches have a quarter as many of them as of the others): each head learns
from the images that have its labels.
"""

import dataclasses
import numbers
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Auxiliary:
  """`config.data.auxiliary`; false where there is none.

  Attributes:
    name: of the data set; None or empty: there is none.
    config: of the data set; empty: its first.
    train: the split that is trained on, or what `affjax.data.selection` reads.
    share: of every batch, in (0, 1); rounded to whole images, of each set one at least.

  Raises:
    ValueError: a field that it cannot be.
  """

  name: str | None = None
  config: str = ""
  train: str = "train"
  share: float = 0.2

  def __post_init__(self) -> None:
    for field in ("name", "config", "train"):
      if not isinstance(value := getattr(self, field) or "", str):
        raise ValueError(f"config.data.auxiliary.{field}={value!r}: use a name")
    share = self.share
    if not isinstance(share, numbers.Real) or isinstance(share, bool) or not 0 < share < 1:
      raise ValueError(f"config.data.auxiliary.share={share!r}: use a number between 0 and 1")

  @classmethod
  def of(cls, config: Mapping[str, Any]) -> "Auxiliary":
    """Reads a whole config; most have no such section.

    Raises:
      ValueError: what there is cannot be, or does not go together with the rest of the config.
    """
    section = config["data"].get("auxiliary") or {}
    known = [field.name for field in dataclasses.fields(cls)]
    if not isinstance(section, Mapping) or set(section) - set(known):
      raise ValueError(f"config.data.auxiliary={section!r}: use a section of {', '.join(known)}")
    found = cls(**section)
    if not found:
      return found
    if config["data"].get("features"):
      raise ValueError(
        "config.data.auxiliary is of images: use none with config.data.features, or no features"
      )
    if (config["data"].get("clips") or {}).get("length"):
      raise ValueError(
        "config.data.auxiliary is of images: use none with config.data.clips, or clips.length=0"
      )
    if config["batch_size"] < 2:
      raise ValueError(
        f"config.data.auxiliary with config.batch_size={config['batch_size']}: use at least 2, an"
        " image of each set"
      )
    return found

  def __bool__(self) -> bool:
    return bool(self.name)

  def rows(self, batch_size: int) -> int:
    """How many images of a batch are of this set."""
    return min(max(round(self.share * batch_size), 1), batch_size - 1) if self else 0

  def section(self, data: Mapping[str, Any]) -> dict[str, Any]:
    """The `config.data` of this set alone, where `data` is that of the first."""
    kept = ("image_size", "records", "unreadable")
    own = {"name": self.name, "config": self.config, "train": self.train, "select": self.train}
    return {name: data[name] for name in kept if name in data} | own | {"report": ()}


def names(config: Mapping[str, Any]) -> list[str]:
  """Of the data sets that a run learns from."""
  beside = Auxiliary.of(config)
  return list(dict.fromkeys([config["data"]["name"], *[beside.name] * bool(beside)]))
