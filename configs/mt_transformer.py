"""The flagship's ancestor: a CNN's map, a visual transformer, tokens of tasks in a decoder.

After Tallec, Yvinec, Dapogny & Bailly (2022, arXiv:2208.03506), whose text and scores we have not
seen, as far as the code of their previous entry tells (gtallec/DL_ISIR_ABAW3, action units alone):
`affjax/models/taskwise.py`. Whence each field is known stands beside it: CODE, that repository;
ABSTRACT, the paper's; RECALL, from memory; INFERRED, our choice. Nobody's number is reproduced, as
the data are licensed.

  python -m affjax.main --config=configs/mt_transformer.py
  python -m affjax.main --config=configs/mt_transformer.py:token_layout=task
  python -m affjax.main --config=configs/mt_transformer.py:data=ferplus  # expressions alone
  python -m affjax.main --config=configs/mt_transformer.py:variant=paper --mode=check --noopen_data

There the CNN starts from ImageNet (CODE: Keras' weights), here from random numbers, unless
`--config.init` names weights: at full size torchvision's, whose means at the edge of a map are over
the zeros around it too, and which see pixels in [-1, 1]:

  python scripts/import_weights.py inception_v3.pth --name=inception --pixels=unit
  python -m affjax.main --config=configs/mt_transformer.py:variant=paper --config.init=inception \\
    --config.model.encoder.count_padding=true

Arguments after the colon: variant (reduced: a narrow VGG, with the data and the number of images of
`configs/vit_mtl.py`, so that the two can be compared; paper: InceptionV3), data (those of
`configs/vit_mtl.py`; by default the synthetic faces, of the paper the licensed data), token_layout
(elementary, mixed, task), steps, batch_size, debug (one CPU, about a minute; never the full size).
"""

from typing import Any

import ml_collections
from ml_collections import config_dict

from configs import common, vit_mtl

VARIANTS = ("reduced", "paper")
WIDTH = 128  # CODE
TOKENS = {"elementary": 22, "mixed": 15, "task": 3}
EPOCHS, WARMUP_EPOCHS = 10, 2.5  # CODE
ROWS, BATCH = 142_382, 64  # of s-Aff-Wild2; CODE
PAPER = dict(
  name="inception.InceptionV3",
  cut="mixed_7c",  # CODE: the whole
  grid=0,  # CODE: 8 x 8 places of 2,048 channels
  count_padding=False,  # True for torchvision's weights
  centre=(0.0, 0.0, 0.0),  # CODE: pixels in [-1, 1], as Keras' weights have it
)
PLACES = 64
# INFERRED: a narrow CNN. With a small ViT in its place runs of 24,000 images could end where they
# had begun.
REDUCED = dict(name="vgg.VGG", stages=4, multiplier=0.25, norm="batch", grid=0)
REDUCED_SIZE = 64  # INFERRED: 4 x 4 places
# INFERRED: peak of the decoder's rates of the reduced variant, whose run is a ninth as many steps;
# by the formula that of the tokens would be 1e-4. With twice as much, one seed of three fell back
# to where it had begun, and stayed there.
REDUCED_RATE = 2.5e-4


def get_config(argument: str = "") -> ml_collections.ConfigDict:
  """Returns the config; see the module's docstring for the argument."""
  given = common.parse(
    argument, variant="reduced", data="", token_layout="elementary", steps=0, batch_size=0,
    debug=False,
  )  # fmt: skip
  variant = common.one_of("variant", given["variant"], VARIANTS)
  layout = common.one_of("token_layout", given["token_layout"], TOKENS)
  debug = given["debug"]
  paper = variant == "paper" and not debug

  # What it does not change is the flagship's: of the reduced variant the data, and how many images
  # it takes, which are 9.8 epochs of the synthetic faces.
  data = given["data"] or ("s_aff_wild2" if variant == "paper" else "synthetic_faces")
  config = vit_mtl.get_config(f"data={data}" + ",debug" * debug)
  config.batch_size = given["batch_size"] or (BATCH if paper else config.batch_size)
  if paper:
    epoch = max(ROWS // config.batch_size, 1)
    config.steps = EPOCHS * epoch  # CODE
    config.evaluate.every = config.checkpoint.every = epoch  # INFERRED
    config.procedure.ema_decay = 0.0  # INFERRED: none
  config.steps = given["steps"] or config.steps
  if paper:
    config.image_size = config.data.image_size = 299  # CODE
    config.augment = dict(
      flip_rate=0.5,  # CODE
      brightness=0.2,  # CODE: 0.1 of a range that is 1 wide
      channel_drop_rate=0.1,  # CODE
      rotation=0.1,  # CODE
      scale=0.1,  # CODE; that it changes the aspect by a third of that, too: ours
      shift=0.0,  # CODE, as are those below: there are none
      contrast=0.0,
      cast=0.0,
      grey_rate=0.0,
      erase_rate=0.0,
    )
  else:  # INFERRED: the flagship's, as a short run has no updates for faces turned by 36 degrees
    config.augment.update(channel_drop_rate=0.1, rotation=0.0)
    config.image_size = config.data.image_size = min(config.image_size, REDUCED_SIZE)
  config.model = dict(
    name="affect.AffectModel",
    encoder=PAPER if paper else REDUCED | {"multiplier": 0.125 if debug else 0.25},
    decoder=dict(
      name="taskwise.TaskwiseTransformer",
      layout=layout,  # elementary: CODE for units; else INFERRED
      token_attention=True,  # CODE; False: an ablation, no token looks at another
      shared_head=config_dict.placeholder(bool),  # None, where the layout allows it: CODE
      heteroscedastic=False,  # INFERRED
      width=WIDTH,
      image_depth=1,  # CODE
      depth=2,  # CODE
      num_heads=8,  # CODE
      dropout_rate=0.1 if paper else 0.0,  # CODE; the flagship's
      temperature=1.0,  # CODE
      # INFERRED: there are units alone. One head gives all numbers, and what rare units make of its
      # bias would drive a tanh to its end, where it learns no more.
      va_activation="identity",
    ),
  )
  # That of valence and arousal and that of the expression are the flagship's: INFERRED.
  config.losses.expression.label_smoothing = 0.1  # INFERRED from the units'
  config.losses.au = dict(
    name="losses.binary_cross_entropy_and_dice",  # CODE
    dice_weight=0.5,  # CODE
    label_smoothing=0.1,  # CODE
    unit_weights=config_dict.placeholder(str),  # CODE: an option there; "inverse": to how often on
  )
  config.procedure.weighting = "simple"  # ABSTRACT: by uncertainties; by which formula: INFERRED
  config.optimizer = _optimizer(config, TOKENS[layout], paper)
  return config


def _optimizer(config: ml_collections.ConfigDict, tokens: int, paper: bool) -> dict[str, Any]:
  """AdamW in three groups and one of the losses' weights; CODE but for the last and what is said.

  The decay of each is equal to its learning rate, hence a factor of 1. Theirs is of all parameters,
  ours of matrices that are no tokens or positions: INFERRED.
  """
  warmup = max(int(config.steps * WARMUP_EPOCHS / EPOCHS), 1)
  # (batch * length / 25,000) width^-1/2 min(step^-1/2, step warmup^-3/2), where the two are equal.
  peak = lambda length: config.batch_size * length / 25_000 * (WIDTH * warmup) ** -0.5
  decoder, image = (peak(tokens), peak(PLACES)) if paper else (REDUCED_RATE, REDUCED_RATE)
  return common.adamw(
    learning_rate=decoder,
    schedule="inverse_sqrt",
    warmup_steps=warmup,
    weight_decay=1.0,
    epsilon=1e-7,
    clip_norm=0.0 if paper else 1.0,  # the flagship's
    groups=dict(
      encoder=dict(
        pattern="model/encoder",
        learning_rate=5e-4,
        # Once an epoch there, evenly here.
        schedule="exponential",
        final_fraction=0.99**EPOCHS,
        warmup_steps=0,
      ),
      image=dict(pattern="decoder/(project|positions|image_blocks)", learning_rate=image),
      # INFERRED: they start far from their ends, where a decoder's rate would not get them.
      weights=dict(pattern="log_variance", learning_rate=1e-3, schedule="constant", warmup_steps=0),
    ),
  )
