"""EMMA: valence and arousal from the scores of expressions and units, of a ViT and a frozen CNN.

After Li et al. (2022, arXiv:2207.11679), `affjax/models/emma.py`; Masked CoTEX, of the same paper,
has a config of its own. Whence each field is known stands beside it: CODE, the authors' repository,
as read by us; ABSTRACT, the paper's; RECALL, from memory; INFERRED, our choice. Nobody's number is
reproduced, as the data are licensed.

  python -m affjax.main --config=configs/emma.py

trains without the CNN: valence and arousal from the ViT's own 20 scores, from random numbers. The
whole system is four runs: the faces without labels, then the CNN's encoder, the CNN, and both:

  python -m affjax.main --config=configs/mae.py
  python -m affjax.main --config=configs/abaw4_baseline.py:task=lsd --workdir=runs/lsd
  python -m affjax.main --config=configs/emma.py:stage=prior --workdir=runs/emma-prior \\
    --config.initialise.source=runs/lsd
  python -m affjax.main --config=configs/emma.py:prior=runs/emma-prior \\
    --config.initialise.source=runs/mae

There the CNN, a DAN, comes from celebrities' faces (RECALL) and knows AffectNet's expressions.
Neither is here. Six posed expressions stand in for the former: its attention learnt nothing over an
encoder of random numbers. For the latter the expressions of our own training split do, so it has
seen no other face there than the ViT has.

  python -m affjax.main --config=configs/emma.py:va_from=features   # to compare
  python -m affjax.main --config=configs/emma.py:variant=paper --mode=check --noopen_data

Arguments after the colon: variant (reduced: data, size and number of images of
`configs/vit_mtl.py`, so that the two can be compared; paper: as published, on the licensed data),
stage (emma; prior: the CNN alone, on expressions), prior (the folder of a run of that stage),
va_from (scores; features: valence and arousal from what the scores are made of), steps, batch_size,
debug (one CPU, under a minute; the CNN is as small, if there is one).
"""

from typing import Any

import ml_collections
from ml_collections import config_dict

from configs import common, vit_mtl

VARIANTS = ("reduced", "paper")
STAGES = ("emma", "prior")
EPOCHS, WARMUP_EPOCHS = 30, 5  # CODE
ROWS = 142_333  # of s-Aff-Wild2: CODE
BATCH = 400  # CODE: four of 100 for an update
# CODE: of the units in the order of `vit_mtl.AUS`, rows without one for each with it.
POSITIVE_WEIGHT = (7.10, 15.64, 5.47, 2.80, 1.52, 1.89, 3.05, 34.05, 32.48, 36.77, 0.58, 11.16)


def get_config(argument: str = "") -> ml_collections.ConfigDict:
  """Returns the config; see the module's docstring for the argument."""
  given = common.parse(
    argument, variant="reduced", stage="emma", prior="", va_from="scores", steps=0, batch_size=0,
    debug=False,
  )  # fmt: skip
  variant = common.one_of("variant", given["variant"], VARIANTS)
  stage = common.one_of("stage", given["stage"], STAGES)
  debug = given["debug"]
  paper = variant == "paper" and not debug
  if stage == "prior" and given["prior"]:
    raise ValueError("config argument prior names a run of stage=prior, which itself takes none")

  # What it does not change is the flagship's.
  data = "s_aff_wild2" if variant == "paper" else "synthetic_faces"
  config = vit_mtl.get_config(f"data={data}" + ",debug" * debug)
  if paper:
    config.batch_size, config.accumulate = given["batch_size"] or BATCH, 4  # CODE
    config.steps = max(EPOCHS * ROWS // config.batch_size, 1)
    config.image_size = 224  # INFERRED
    config.evaluate.every = max(ROWS // config.batch_size, 1)  # INFERRED
    config.checkpoint.every = config.evaluate.every
  elif debug:
    config.image_size = config.data.image_size = 48
  config.steps = given["steps"] or config.steps
  config.batch_size = given["batch_size"] or config.batch_size
  config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, config.steps // 10)
  if paper:  # CODE: enlarged by 1.04 and cut, colours changed in a fifth of the images, mirrored
    config.augment = dict(
      flip_rate=0.5,
      scale=0.0,
      shift=0.02,  # CODE: what cutting does
      brightness=0.1,  # INFERRED, as are the next two: in all of the images, and less
      contrast=0.1,
      cast=0.02,
      grey_rate=0.0,
      erase_rate=0.0,
      erase_area=0.15,
    )
  config.procedure.weighting = "equal"
  if paper:
    config.procedure.ema_decay = 0.0  # INFERRED: none
  if stage == "prior":
    return _prior(config, paper, debug)

  config.model = dict(
    name="emma.EMMA",
    encoder=_encoder(config.model.encoder, paper),
    prior=_cnn(paper, debug) if paper or given["prior"] else None,
    decoder=dict(
      name="emma.Scores",
      width=512,  # CODE
      va_width=256,  # CODE
      va_from=given["va_from"],
      pool="first" if paper else "mean",  # CODE: the class token. The reduced ViT has none
      va_activation="identity",  # CODE
    ),
  )
  # CODE: the sum over valence and arousal of 1 - CCC, the mean cross-entropy, and the mean over
  # rows of the sum over units. INFERRED: means of all, of equal weight.
  config.losses.va = dict(name="losses.ccc_loss")
  config.losses.expression.logit_adjustment = config_dict.placeholder(str)
  config.losses.au = dict(
    name="losses.binary_cross_entropy",
    positive_weight=POSITIVE_WEIGHT if variant == "paper" else "balanced",
  )
  config.optimizer = _optimizer(config, paper)
  if config.model.prior:
    config.optimizer.groups.prior = dict(pattern="model/prior", freeze=True)  # CODE
  if given["prior"]:
    config.initialise.more = dict(
      prior=dict(
        source=given["prior"],
        checkpoint="best",
        weights="ema",
        include="model/prior/",
        exclude="",
        rename=(("^model/", "model/prior/"),),
      )
    )
  return config


def _encoder(flagship: ml_collections.ConfigDict, paper: bool) -> Any:
  if not paper:
    return flagship
  return dict(
    name="vit.ViT",
    variant="B/16",  # CODE
    stem="patch",  # CODE
    class_token=True,  # CODE
    gelu="exact",  # RECALL
    dropout_rate=0.0,
    drop_path_rate=0.1,  # CODE
    layer_scale=0.0,  # RECALL: none
    registers=0,
    remat=False,
    scan=False,
  )


def _cnn(paper: bool, debug: bool) -> dict[str, Any]:
  return dict(
    name="affect.AffectModel",
    encoder=dict(
      name="resnet.ResNet",
      depth=18,  # CODE
      stages=2 if debug else 4,  # of the reduced ones as in abaw4_baseline, which it starts from
      multiplier=1.0 if paper else 0.25,
      grid=0,  # CODE: the map as it is
    ),
    decoder=dict(name="attention.DAN", num_heads=4),  # CODE
  )


def _prior(
  config: ml_collections.ConfigDict, paper: bool, debug: bool
) -> ml_collections.ConfigDict:
  """The CNN alone: INFERRED as a whole, as the authors took one that had learnt already."""
  config.labels = dict(expression=config.labels.expression)
  config.model = _cnn(paper, debug)
  config.losses = dict(expression=dict(name="losses.cross_entropy", label_smoothing=0.0))
  config.checkpoint.metric = "expression/f1"
  config.initialise.include = "model/encoder"
  return config


def _optimizer(config: ml_collections.ConfigDict, paper: bool) -> dict[str, Any]:
  """AdamW of the ViT, and Adam of the head of valence and arousal.

  There only the ViT's gradient is clipped, here that of both together: INFERRED. There the head
  takes a step with each quarter of a batch, whose gradients are sums so far; ours does not.
  """
  if not paper:
    return common.adamw(warmup_steps=config.optimizer.warmup_steps)
  peak = 5e-4 * config.batch_size / 256  # CODE
  return common.adamw(
    learning_rate=peak,
    warmup_steps=config.steps * WARMUP_EPOCHS // EPOCHS,  # CODE
    final_fraction=1e-6 / peak,  # CODE
    weight_decay=0.05,  # CODE
    clip_norm=0.05,  # CODE
    layer_decay=0.65,  # CODE
    groups=dict(
      va=dict(
        pattern="decoder/va_",
        learning_rate=1e-4,  # CODE
        weight_decay=0.0,  # CODE
        schedule="constant",  # INFERRED, as is the next
        warmup_steps=0,
      )
    ),
  )
