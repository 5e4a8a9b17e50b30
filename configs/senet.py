"""Squeeze and excitation for expressions: an SE-ResNet-50 that knew faces before, fine-tuned.

After Cafarelli, Massoli, Falchi, Gennaro & Amato (2021, arXiv:2101.09231): SE-ResNet-50 (Hu et al.,
2017, arXiv:1709.01507) of VGGFace2, fine-tuned on the seven expressions of Aff-Wild2 and scored as
ABAW1 does, by .67 macro F1 + .33 accuracy: `expression/abaw2` of a run of the seven, which chooses
its checkpoint, and `python -m affjax.score --task=expression --edition=1` of files.
What is known of each field stands behind it: ABSTRACT, TEXT (of a page about it) or INFERRED.
Nobody's number is reproduced, as the data are licensed, and VGGFace2's weights are not here: at
full size `--config.init` takes timm's SE-ResNet-50, of ImageNet:

  python scripts/import_weights.py seresnet50.safetensors --name=senet --pixels=imagenet

  python -m affjax.main --config=configs/senet.py               # synthetic faces, minutes
  python -m affjax.main --config=configs/senet.py:data=ferplus  # photographs
  python -m affjax.main --config=configs/senet.py --config.model.encoder.gates=false
  python -m affjax.main --config=configs/senet.py:variant=paper --mode=check --noopen_data

Arguments after the colon: data (synthetic_faces, of the variant paper aff_wild2; ferplus; or one of
them and its config: synthetic_faces/strong), variant (reduced: 18 layers, narrow, learns in
minutes; paper: as published), steps, batch_size, debug (one CPU, under a minute; never the full
size; the smallest data set of that kind).
"""

from typing import Any

import ml_collections
from ml_collections import config_dict

from configs import common

EXPRESSIONS = (
  "neutral", "anger", "disgust", "fear", "happiness", "sadness", "surprise",
)  # fmt: skip
EPOCHS = 10  # INFERRED: of the variant paper
# Splits; images to learn from; the score that chooses the checkpoint; expressions beyond those.
DATA = {
  "synthetic_faces": dict(
    splits=dict(train="train", select="validation", report=("test",)), images=8192,
    others=("other",),
  ),
  "ferplus": dict(
    splits=dict(train="train", select="dev", report=("validation",)), images=25_000, stored=48,
    metric="expression/strict/abaw2",
  ),
  "aff_wild2": dict(  # INFERRED: every tenth frame, some 100,000
    splits=dict(train="train:labelled:every=10", select="validation:labelled", report=()),
    images=100_000, stored=112, config="expression", metric="expression/abaw2",
  ),
}  # fmt: skip
VARIANTS = ("reduced", "paper")
# What weights of ImageNet subtract of red, green and blue in [0, 1], here of [-1, 1].
CENTRE = tuple(2 * mean - 1 for mean in (0.485, 0.456, 0.406))


def get_config(argument: str = "") -> ml_collections.ConfigDict:
  """Returns the config; see the module's docstring for the argument."""
  given = common.parse(argument, data="", variant="reduced", steps=0, batch_size=0, debug=False)
  published = common.one_of("variant", given["variant"], VARIANTS) == "paper"
  data = given["data"] or ("aff_wild2" if published else "synthetic_faces")
  name, _, builder_config = data.partition("/")
  kind = DATA[common.one_of("data", name, DATA)]
  debug = given["debug"]
  paper = published and not debug
  smallest = "tiny" if debug and name == "synthetic_faces" else ""

  config = ml_collections.ConfigDict()
  common.training(config)
  config.batch_size = given["batch_size"] or (16 if debug else 64 if paper else 32)  # INFERRED
  epochs = max(EPOCHS * kind["images"] // config.batch_size, 1)
  config.steps = given["steps"] or (20 if debug else epochs if paper else 1500)
  config.image_size = 48 if debug else 224 if paper else 112  # INFERRED: 224, as VGGFace2's
  config.labels = dict(expression=EXPRESSIONS + kind.get("others", ()))  # ABSTRACT: seven
  config.data = dict(
    name=name,
    config=builder_config or kind.get("config", smallest),
    image_size=kind.get("stored", config.image_size),
    workers=0,
    threads=2,
    placement="auto",
    records="auto",
    sampling="uniform",
    unreadable="error",
    view=dict(noise="clean", masks="none"),
    **kind["splits"],
  )
  config.augment = dict(  # INFERRED
    flip_rate=0.5, scale=0.03, shift=0.02, brightness=0.1, contrast=0.1, cast=0.0, grey_rate=0.0,
    erase_rate=0.0, erase_area=0.15,
  )  # fmt: skip
  config.model = dict(
    name="affect.AffectModel",
    encoder=dict(
      name="resnet.ResNet",
      depth=50 if paper else 18,  # ABSTRACT: 50
      gates=True,  # ABSTRACT
      multiplier=1.0 if paper else 0.25,
      stages=2 if debug else 4,
      centre=CENTRE if paper else (0.0, 0.0, 0.0),
    ),
    decoder=dict(name="decoders.Linear"),  # INFERRED
  )
  config.losses = dict(
    expression=dict(
      name="losses.cross_entropy",
      label_smoothing=0.0,
      class_weights="balanced",  # INFERRED: inverse to the frequency
      logit_adjustment=config_dict.placeholder(str),
    )
  )
  config.procedure = dict(
    name="supervised.Supervised",
    weighting="equal",  # there is one task
    ema_decay=0.0 if paper else 0.998,  # INFERRED: none
    mixup_alpha=0.0,
  )
  config.optimizer = _optimizer(config.steps, paper)
  every = 10 if debug else max(config.steps // 5, 1)
  config.evaluate = dict(every=every, batch_size=64 if debug else 256, probe=False)
  config.checkpoint.every = 5 if debug else max(every // 2, 1)
  config.checkpoint.metric = kind.get("metric", "expression/f1")
  config.log_every = 5 if debug else 50
  return config


def _optimizer(steps: int, paper: bool) -> dict[str, Any]:
  if not paper:
    return common.adamw(warmup_steps=min(100, steps // 10))
  return dict(  # INFERRED, all of it
    name="optim.sgd",
    learning_rate=1e-3,
    schedule="constant",
    final_fraction=0.0,
    warmup_steps=0,
    weight_decay=0.0,
    clip_norm=0.0,
    momentum=0.9,
    layer_decay=1.0,
    groups=dict(),
  )
