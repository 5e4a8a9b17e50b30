"""The baselines of ABAW4: VGG16 whose convolutions are frozen, and ResNet-50.

After Kollias (2022, arXiv:2207.01138). Of its two challenges, `task=mtl` (valence-arousal,
expression and action units of one image) has a VGG16 that learnt faces before: its convolutions
stay as they are, and its three fully connected layers learn, the last with 22 outputs. `task=lsd`
(six expressions, learnt from synthetic faces) has a ResNet-50, all of which learns. What is known
of each field stands behind it: CODE, RECALL or INFERRED. The weights that the paper starts
from, those of VGGFace and of ImageNet, are not here, and its scores are nobody's to reproduce, as
its data are licensed.

What is frozen must have learnt something. The stand-in for VGGFace is a run of the same network in
which all layers learn the expressions alone; two commands make the baseline of synthetic faces:

  python -m affjax.main --config=configs/abaw4_baseline.py:stage=pretrain --workdir=runs/trunk
  python -m affjax.main --config=configs/abaw4_baseline.py:stage=frozen \\
      --config.initialise.source=runs/trunk

  python -m affjax.main --config=configs/abaw4_baseline.py          # all layers, all tasks: minutes
  python -m affjax.main --config=configs/abaw4_baseline.py:task=lsd
  python -m affjax.main --config=configs/abaw4_baseline.py:task=lsd,data=ferplus   # photographs
  python -m affjax.main --config=configs/abaw4_baseline.py:variant=paper --mode=check --noopen_data

At full size `--config.init` takes torchvision's VGG16 or ResNet-50, of ImageNet:

  python scripts/import_weights.py vgg16.pth --name=vgg16 --pixels=imagenet --licence=BSD-3-Clause

Arguments after the colon: task (mtl, lsd), variant (reduced: narrow, learns in minutes; paper: as
published), stage (of mtl. frozen: the convolutions stay as they are, with the variant paper where
nothing is said; all: none do, else; pretrain: none do, and there are expressions alone), data
(synthetic_faces, ferplus; of mtl s_aff_wild2, of lsd lsd; or one of them and its config:
synthetic_faces/strong), steps, batch_size, debug (one CPU, under a minute, the smallest data set of
that kind).
"""

from typing import Any

import ml_collections
from ml_collections import config_dict

from configs import common

EXPRESSIONS = (
  "neutral", "anger", "disgust", "fear", "happiness", "sadness", "surprise", "other",
)  # fmt: skip
AUS = (1, 2, 4, 6, 7, 10, 12, 15, 23, 24, 25, 26)
LABELS = {  # CODE: the names and orders of the challenges
  "mtl": dict(
    va=("valence", "arousal"), expression=EXPRESSIONS, au=tuple(f"AU{n}" for n in AUS)
  ),
  "lsd": dict(expression=EXPRESSIONS[1:7]),
}  # fmt: skip
LOSSES = {  # INFERRED, all three
  "va": dict(name="losses.ccc_loss"),
  "expression": dict(
    name="losses.cross_entropy",
    label_smoothing=0.0,
    class_weights=config_dict.placeholder(str),  # "balanced": from the training split
    logit_adjustment=config_dict.placeholder(str),  # "prior": likewise
  ),
  "au": dict(
    name="losses.binary_cross_entropy",
    positive_weight=config_dict.placeholder(str),  # "balanced": likewise
  ),
}
VARIANTS = ("reduced", "paper")
STAGES = ("frozen", "all", "pretrain")
CONVOLUTIONS = "model/encoder/(stem|blocks)/"
EPOCHS = 10  # INFERRED: of the variant paper
# Splits; the score that chooses the checkpoint; images to learn from.
FACES = dict(splits=dict(train="train", select="validation", report=("test",)), images=8192)
FERPLUS = dict(
  splits=dict(train="train", select="dev", report=("validation",)),
  images=25_000,
  stored=48,  # pixels
  metric="expression/strict/f1",
)
LICENSED = dict(train="train", select="validation", report=())
DATA = {
  "mtl": {
    # People lack tasks as the videos of the licensed data do.
    "synthetic_faces": FACES | dict(masks="s_aff_wild2", metric="p_mtl"),
    "ferplus": FERPLUS,  # expressions alone are labelled
    "s_aff_wild2": dict(splits=LICENSED, images=142_382, metric="p_mtl"),
  },
  "lsd": {
    "synthetic_faces": FACES | dict(config="lsd", metric="expression/f1"),
    "ferplus": FERPLUS,
    "lsd": dict(splits=LICENSED, images=277_251, metric="expression/f1"),
  },
}
# What weights of ImageNet subtract of red, green and blue in [0, 1], here of [-1, 1].
CENTRE = tuple(2 * mean - 1 for mean in (0.485, 0.456, 0.406))


def get_config(argument: str = "") -> ml_collections.ConfigDict:
  """Returns the config; see the module's docstring for the argument."""
  given = common.parse(
    argument, task="mtl", variant="reduced", stage="", data="synthetic_faces", steps=0,
    batch_size=0, debug=False,
  )  # fmt: skip
  task = common.one_of("task", given["task"], LABELS)
  published = common.one_of("variant", given["variant"], VARIANTS) == "paper"
  default = "frozen" if published and task == "mtl" else "all"
  stages = STAGES if task == "mtl" else ("all",)
  stage = common.one_of("stage", given["stage"] or default, stages)
  name, _, builder_config = given["data"].partition("/")
  kind = DATA[task][common.one_of("data", name, DATA[task])]
  debug = given["debug"]
  paper = published and not debug
  if debug and name == "synthetic_faces":
    builder_config = builder_config or "tiny"

  config = ml_collections.ConfigDict()
  common.training(config)
  config.batch_size = given["batch_size"] or (16 if debug else 256 if paper else 32)  # INFERRED
  epochs = max(EPOCHS * kind["images"] // config.batch_size, 1)
  config.steps = given["steps"] or (20 if debug else epochs if paper else 1500)
  config.image_size = _pixels(task, paper=paper, debug=debug)
  tasks = ("expression",) if stage == "pretrain" else tuple(LABELS[task])
  config.labels = {one: LABELS[task][one] for one in tasks}
  config.data = dict(
    name=name,
    config=builder_config or kind.get("config", ""),
    image_size=kind.get("stored", config.image_size),
    workers=0,
    threads=2,
    placement="auto",
    records="auto",
    sampling="uniform",
    unreadable="error",
    view=dict(noise="clean", masks=kind.get("masks", "none")),
    **kind["splits"],
  )
  config.augment = dict(  # RECALL: there is some; which: INFERRED
    flip_rate=0.5, scale=0.03, shift=0.02, brightness=0.1, contrast=0.1, cast=0.0, grey_rate=0.0,
    erase_rate=0.0, erase_area=0.15,
  )  # fmt: skip
  config.model = dict(
    name="affect.AffectModel",
    encoder=_encoder(task, paper=paper, debug=debug),
    decoder=dict(name="decoders.Linear", va_activation="identity"),  # RECALL: two are linear
  )
  config.losses = {one: dict(LOSSES[one]) for one in tasks}
  config.procedure = dict(
    name="supervised.Supervised",
    weighting="equal",  # INFERRED
    ema_decay=0.0 if paper else 0.998,  # INFERRED: none
    mixup_alpha=0.0,
  )
  config.optimizer = _adam(config.steps, stage, paper=paper)
  if stage == "frozen":
    config.optimizer.groups = dict(convolutions=dict(pattern=CONVOLUTIONS, freeze=True))  # RECALL
  if task == "mtl":  # INFERRED: the fully connected layers start from random numbers
    config.initialise.include = CONVOLUTIONS
  every = 10 if debug else max(config.steps // 5, 1)
  config.evaluate = dict(every=every, batch_size=64 if debug else 256, probe=False)
  config.checkpoint.every = 5 if debug else max(every // 2, 1)
  alone = stage == "pretrain" and kind["metric"] == "p_mtl"
  config.checkpoint.metric = "expression/f1" if alone else kind["metric"]
  config.log_every = 5 if debug else 50
  return config


def _pixels(task: str, *, paper: bool, debug: bool) -> int:
  """Height and width of the images, as the model sees them."""
  if debug:
    return 48
  return 64 if task == "mtl" and not paper else 112  # RECALL: 112


def _encoder(task: str, *, paper: bool, debug: bool) -> dict[str, Any]:
  # INFERRED: which pixels; RECALL: intensities in [-1, 1], as there are without weights.
  centre = CENTRE if paper else (0.0, 0.0, 0.0)
  if task == "mtl":
    return dict(
      name="vgg.VGG",  # RECALL
      multiplier=0.125 if debug else 1.0 if paper else 0.25,
      # RECALL: two of the three fully connected layers. INFERRED: VGGFace's width and dropout.
      dense=(4096, 4096) if paper else (256, 256),
      dropout_rate=0.5 if paper else 0.1,
      norm="none" if paper else "batch",  # ours: all layers start from random numbers
      centre=centre,
    )
  return dict(
    name="resnet.ResNet",  # RECALL
    depth=50 if paper else 18,  # RECALL: 50
    multiplier=1.0 if paper else 0.25,
    stages=2 if debug else 4,
    centre=centre,
  )


def _adam(steps: int, stage: str, *, paper: bool) -> dict[str, Any]:
  if paper:
    return common.adamw(
      learning_rate=1e-4,  # RECALL, as is Adam
      schedule="constant",  # INFERRED, as are those below
      weight_decay=0.0,
      clip_norm=0.0,
    )
  # INFERRED, as are all of the reduced variant's. At 1e-3 half of the last layer's units were dead
  # with one seed of three, where there are expressions alone.
  rate = 5e-4 if stage == "pretrain" else 1e-3
  return common.adamw(learning_rate=rate, warmup_steps=min(100, steps // 10))
