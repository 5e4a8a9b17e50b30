"""Photographs: an encoder that knows faces, fine-tuned to their expressions.

`faceres-deep`, a MobileNet-v1 that learnt to tell the people of VGGFace2 apart (Savchenko, 2019,
arXiv:1807.07718), goes on with FER+'s training images, enlarged to 112 px. Its stem and its first
five blocks stay as they are: without a pass back through them an update takes half of the time.

  python scripts/import_weights.py faceres-deep             # the weights
  python -m affjax.data.prepare ferplus --source=FOLDER     # the photographs
  python -m affjax.main --config=configs/ferplus_mobilenet.py

6.4 epochs, a quarter of an hour on two CPU cores. With half of FER+'s training images (12,079), on
all 3,510 of validation (2,798 have a strict majority), mean of three seeds: accuracy .877 `strict`
(.872 to .880) and .839 `official` (.835 to .842). Learning rate and length were chosen on `dev`.

Arguments after the colon: steps, batch_size, debug (one CPU, under a minute, neither weights nor
photographs: a network a quarter as wide and the smallest synthetic faces, from random numbers).
"""

import ml_collections

from configs import common

EXPRESSIONS = (
  "neutral", "anger", "disgust", "fear", "happiness", "sadness", "surprise", "other",
)  # fmt: skip
# What the weights subtract of red, green and blue in [0, 255], here of [-1, 1].
CENTRE = tuple(value / 127.5 - 1 for value in (123.68, 116.779, 103.939))


def get_config(argument: str = "") -> ml_collections.ConfigDict:
  """Returns the config; see the module's docstring for the argument."""
  given = common.parse(argument, steps=2400, batch_size=32, debug=False)
  debug = given["debug"]

  config = ml_collections.ConfigDict()
  common.training(config)
  config.init = None if debug else "faceres-deep"
  config.steps = 20 if debug else given["steps"]
  config.batch_size = 16 if debug else given["batch_size"]
  config.image_size = 112
  config.labels = dict(expression=EXPRESSIONS)
  if debug:
    config.data = dict(
      name="synthetic_faces", config="tiny", train="train", select="validation", report=("test",)
    )
  else:
    config.data = dict(
      name="ferplus", config="", train="train", select="dev", report=("validation",)
    )
  config.data.update(
    image_size=48,  # as they are stored: what moves an image also enlarges it
    workers=0,
    threads=2,
    placement="auto",
    records="auto",
    sampling="uniform",
    unreadable="error",
    view=dict(noise="clean", masks="none"),
  )
  config.augment = dict(
    flip_rate=0.5, scale=0.15, shift=0.08, brightness=0.1, contrast=0.25, cast=0.0, grey_rate=0.0,
    erase_rate=0.25, erase_area=0.15,
  )  # fmt: skip
  config.model = dict(
    name="affect.AffectModel",
    encoder=dict(
      name="mobilenet.MobileNet",
      multiplier=0.25 if debug else 1.0,
      depth=13,
      grid=1,
      norm="none",
      centre=CENTRE,
    ),
    decoder=dict(name="decoders.Linear"),
  )
  config.losses = dict(expression=dict(name="losses.cross_entropy", label_smoothing=0.0))
  config.procedure = dict(
    name="supervised.Supervised",
    weighting="equal",  # there is one task
    ema_decay=0.998,
    mixup_alpha=0.0,
  )
  config.optimizer = common.adamw(
    learning_rate=1e-3,
    warmup_steps=2 if debug else 100,
    layer_decay=0.9,
    groups=dict(low=dict(pattern="encoder/(stem|blocks/[0-4]/)", freeze=True)),
  )

  config.evaluate = dict(every=10 if debug else 400, batch_size=64 if debug else 256, probe=False)
  config.checkpoint.every = 5 if debug else 200
  config.checkpoint.metric = "expression/accuracy" if debug else "expression/strict/accuracy"
  config.log_every = 5 if debug else 50
  return config
