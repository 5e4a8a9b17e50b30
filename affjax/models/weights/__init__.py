"""Weights from a file, by name, and public names turned into ours.

  arrays = weights.from_transformers(weights.read("model.safetensors"))  # google/vit-*, DINOv2
  weights.fill(model, weights.fit(arrays, model))

Names are paths of parameters, as in `blocks/0/attention/query_key_value/kernel`. In order: `files`
are read, `naming` makes our names of those that are public, `fitting` makes arrays fit a model;
`known` are the weights that have a name and where they are kept.
"""

from affjax.models.weights.files import read
from affjax.models.weights.fitting import fill, fit, fold, stack, unstack
from affjax.models.weights.known import KNOWN, facts, find, folder
from affjax.models.weights.naming import (
  PIXELS,
  Public,
  convert,
  from_efficientnet,
  from_faceres,
  from_flax,
  from_timm,
  from_transformers,
  of_transformers,
)

__all__ = [
  "KNOWN",
  "PIXELS",
  "Public",
  "convert",
  "facts",
  "fill",
  "find",
  "fit",
  "fold",
  "folder",
  "from_efficientnet",
  "from_faceres",
  "from_flax",
  "from_timm",
  "from_transformers",
  "of_transformers",
  "read",
  "stack",
  "unstack",
]
