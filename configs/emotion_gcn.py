"""Emotion-GCN: classifiers of expressions and of valence and arousal, made by a graph of labels.

After Antoniadis, Filntisis & Maragos (2021, arXiv:2106.03487): labels that go together in the
training split are neighbours in a graph, and two graph convolutions over it give the weights of all
outputs: `affjax/models/graphs.py`. What is known of each field stands behind it: CODE (theirs),
ABSTRACT, RECALL or INFERRED. Where GloVe's vectors of the labels' names stand there, these are
drawn at random; where weights of ImageNet do, training starts from random numbers unless
`config.initialise` names some.

Where two expressions were planted to follow valence and arousal, `scripts/measure_label_graph.py`
finds no advantage of the graph: its F1 of the two less that of a linear head is -.020 [-.043 .003]
over eight seeds. Of the paper's data that says nothing. The reduced variant has a narrow VGG in
place of DenseNet-121 and learns from the start, with few labels too, if the graph learns slowly: at
the rate of the others, ours for AdamW, valence and arousal stood still for 500 of 750 steps.

  python -m affjax.main --config=configs/emotion_gcn.py                  # synthetic faces, minutes
  python -m affjax.main --config=configs/emotion_gcn.py:head=linear      # without a graph
  python -m affjax.main --config=configs/emotion_gcn.py:head=single      # expressions alone
  python -m affjax.main --config=configs/emotion_gcn.py --config.model.decoder.graph=none
  python -m affjax.main --config=configs/emotion_gcn.py:data=affectnet,variant=paper

Arguments after the colon: data (synthetic_faces, affectnet, aff_wild2, or one of them and its
config: synthetic_faces/strong), variant (reduced: small, learns in minutes; paper: as published),
head (gcn; linear: a dense layer for each task in its place; single: that for the expressions
alone), au (the twelve units are nodes, too: ours), steps, batch_size, debug (one CPU, under a
minute; the smallest data set of that kind).
"""

import ml_collections
from ml_collections import config_dict

from configs import common

# Seven of AffectNet in its order: CODE. A face of contempt teaches valence and arousal alone.
EXPRESSIONS = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger")
AUS = (1, 2, 4, 6, 7, 10, 12, 15, 23, 24, 25, 26)
# Splits; pixels of the paper; images to learn from, for its ten epochs; expressions beyond those.
DATA = {
  "synthetic_faces": dict(
    splits=dict(train="train", select="validation", report=("test",)), pixels=112, images=8192,
    others=("other",),
  ),
  "affectnet": dict(  # CODE: 227 pixels
    splits=dict(train="train", select="validation", report=()), pixels=227, images=287_651
  ),
  "aff_wild2": dict(  # CODE: 112 pixels. INFERRED: every tenth frame, some 250,000
    splits=dict(train="train:labelled:every=10", select="validation:labelled", report=()),
    pixels=112, images=250_000, config="all",
  ),
}  # fmt: skip
# Of the class weights of AffectNet: inverse to the frequency, CODE; there 1 for the rarest.
WEIGHTED = ("affectnet",)
VARIANTS = ("reduced", "paper")
HEADS = ("gcn", "linear", "single")


def get_config(argument: str = "") -> ml_collections.ConfigDict:
  """Returns the config; see the module's docstring for the argument."""
  given = common.parse(
    argument, data="synthetic_faces", variant="reduced", head="gcn", au=False, steps=0,
    batch_size=0, debug=False,
  )  # fmt: skip
  name, _, builder_config = given["data"].partition("/")
  kind = DATA[common.one_of("data", name, DATA)]
  head = common.one_of("head", given["head"], HEADS)
  if head == "single" and given["au"]:
    raise ValueError(
      "config argument au is of several tasks, and head=single has expressions alone"
    )
  debug = given["debug"]
  paper = common.one_of("variant", given["variant"], VARIANTS) == "paper" and not debug
  smallest = "tiny" if debug and name == "synthetic_faces" else ""

  config = ml_collections.ConfigDict()
  common.training(config)
  config.batch_size = given["batch_size"] or (16 if debug else 35 if paper else 32)  # CODE: 35
  epochs = max(10 * kind["images"] // config.batch_size, 1)  # CODE: 10
  config.steps = given["steps"] or (20 if debug else epochs if paper else 1500)
  config.image_size = 48 if debug else kind["pixels"] if paper else 64
  config.labels = dict(expression=EXPRESSIONS + kind.get("others", ()))
  if head != "single":
    config.labels.va = ("valence", "arousal")
    if given["au"]:
      config.labels.au = tuple(f"AU{n}" for n in AUS)
  config.data = dict(
    name=name,
    config=builder_config or kind.get("config", smallest),
    image_size=config.image_size,
    workers=0,
    threads=2,
    placement="auto",
    records="auto",
    sampling="uniform",
    unreadable="error",
    view=dict(noise="clean", masks="none"),
    **kind["splits"],
  )
  config.augment = dict(
    flip_rate=0.5,  # CODE
    scale=0.0,
    shift=0.0,
    # CODE: ColorJitter with its defaults, which change nothing (RECALL of torchvision).
    brightness=0.0,
    contrast=0.0,
    cast=0.0,
    grey_rate=0.0,
    erase_rate=0.0,
    erase_area=0.15,
    rotation=30 / 360,  # CODE
    channel_drop_rate=0.0,
  )
  if not paper:  # ours: rendered and aligned faces do not lie on their side
    config.augment.update(rotation=0.0, scale=0.03, shift=0.02, brightness=0.1, contrast=0.1)
  config.model = dict(
    name="affect.AffectModel",
    encoder=_encoder(paper, debug),
    decoder=_decoder(head),
  )
  config.losses = _losses(name, tuple(config.labels))
  config.procedure = dict(
    name="supervised.Supervised",
    weighting="equal",  # CODE: there is a flag for a weight, and nothing reads it
    ema_decay=0.0 if paper else 0.998,  # INFERRED: none
    mixup_alpha=0.0,
  )
  if paper:
    config.optimizer = dict(
      name="optim.sgd",
      learning_rate=1e-3,  # CODE
      schedule="constant",  # CODE: times 0.1 every ten epochs, and ten are all there are
      final_fraction=0.0,
      warmup_steps=0,
      weight_decay=1e-3,  # CODE; there on biases and norms too
      clip_norm=0.0,
      momentum=0.9,  # CODE
      layer_decay=1.0,
      groups=dict(),
    )
  else:
    # Adam moves all weights of the graph together, so its outputs by far more than a dense layer's.
    slow = dict(graph=dict(pattern="model/decoder", learning_rate=5e-5)) if head == "gcn" else {}
    config.optimizer = common.adamw(warmup_steps=min(100, config.steps // 10), groups=slow)
  every = 10 if debug else max(config.steps // 5, 1)
  config.evaluate = dict(every=every, batch_size=64 if debug else 256, probe=False)
  config.checkpoint.every = 5 if debug else max(every // 2, 1)
  config.checkpoint.metric = "expression/f1"
  config.log_every = 5 if debug else 50
  return config


def _encoder(paper: bool, debug: bool) -> dict:
  """Its map is given as it is, 7 x 7 of 227 pixels and 3 x 3 of 112: CODE."""
  if paper:
    return dict(name="densenet.DenseNet", depth=121, stages=4, multiplier=1.0, grid=0)  # CODE
  # Ours: narrow DenseNets of two and three blocks had learnt next to nothing after 24,000 images.
  return dict(name="vgg.VGG", multiplier=0.125 if debug else 0.25, norm="batch", grid=0)


def _decoder(head: str) -> dict:
  if head != "gcn":
    # INFERRED: pooled as for the graph, so that they differ by it alone.
    return dict(name="decoders.Linear", va_activation="identity", pool="max")
  return dict(
    name="graphs.LabelGraph",
    graph="spearman",  # CODE. "none": no label has a neighbour
    threshold=0.1,  # CODE
    adjacency=config_dict.placeholder(tuple),  # None: from the training split
    embeddings="random",  # CODE: GloVe, which these stand in for; or "learned"
    embedding_width=300,  # CODE
    width=512,  # CODE
    pool="max",  # CODE
  )


def _losses(data: str, tasks: tuple[str, ...]) -> dict:
  every = dict(
    va=dict(name="losses.ccc_loss"),  # CODE: 1 - the mean of both
    expression=dict(
      name="losses.cross_entropy",
      label_smoothing=0.0,
      # CODE: of AffectNet; of Aff-Wild2 none.
      class_weights="balanced" if data in WEIGHTED else config_dict.placeholder(str),
      logit_adjustment=config_dict.placeholder(str),
    ),
    au=dict(name="losses.binary_cross_entropy", positive_weight=config_dict.placeholder(str)),
  )
  return {task: every[task] for task in tasks}
