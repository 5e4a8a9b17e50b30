"""The baselines of ABAW4 as runs: their sizes, what is frozen and what the trunk starts from."""

import functools
import json

import jax
import numpy as np
import pytest
from flax import nnx

from affjax import checkpoints, evaluate, optim, paths, procedures, state, train
from affjax.build import build
from configs import abaw4_baseline

SIX = ["anger", "disgust", "fear", "happiness", "sadness", "surprise"]
TRUNK = ("model/encoder/stem/", "model/encoder/blocks/")


def plain(argument="debug", **changes):
  """The config as plain types; `optimizer__learning_rate=0.1` changes a leaf."""
  config = json.loads(abaw4_baseline.get_config(argument).to_json_best_effort())
  config["draw_report"] = False
  for name, value in changes.items():
    *path, leaf = name.split("__")
    section = config
    for key in path:
      section = section[key]
    section[leaf] = value
  return config


def count(config, outputs, image_size):
  """Parameters of the config's model with other outputs, or of images of another size."""
  model = nnx.eval_shape(
    lambda: build(
      config["model"], "affjax.models", outputs=outputs, image_size=image_size, rngs=nnx.Rngs(0)
    )
  )
  return state.count(nnx.to_pure_dict(nnx.state(model, nnx.Param)))


# Sizes.


def test_the_vgg_of_the_paper_has_the_published_sizes():
  config = plain("variant=paper,data=s_aff_wild2")
  params = jax.eval_shape(procedures.from_config(config).init).params
  shapes = {name: x.shape for name, x in paths.named(params).items()}
  # Published: 138,357,544 for images of 224 pixels and 1,000 classes.
  assert count(config, {"expression": 1000}, 224) == 138_357_544
  assert shapes["model/encoder/stem/kernel"] == (3, 3, 3, 64)
  assert shapes["model/encoder/blocks/11/kernel"] == (3, 3, 512, 512)
  assert shapes["model/encoder/dense/0/kernel"] == (3 * 3 * 512, 4096)  # of 112 pixels
  assert shapes["model/encoder/dense/1/kernel"] == (4096, 4096)
  heads = [shape for name, shape in shapes.items() if name.startswith("model/decoder")]
  assert sorted(shape for shape in heads if len(shape) == 2) == [(4096, 2), (4096, 8), (4096, 12)]


def test_its_check_says_that_as_many_numbers_are_frozen_as_are_published_of_convolutions():
  config = plain("variant=paper,data=s_aff_wild2")
  params = jax.eval_shape(procedures.from_config(config).init).params
  frozen, others = optim.describe(params, config)
  assert frozen.startswith("convolutions: 14,714,688 numbers in 26 arrays, frozen; warning: ")
  assert "learning rate 0.0001 (constant" in others
  assert "weight decay 0 " in others


def test_the_resnet_of_the_paper_has_the_published_sizes():
  config = plain("task=lsd,data=lsd,variant=paper")
  assert config["labels"] == {"expression": SIX}
  assert count(config, {"expression": 1000}, 224) == 25_557_032
  assert count(config, {"expression": 6}, 112) == 25_557_032 - 2_049_000 + 2048 * 6 + 6
  assert config["optimizer"]["groups"] == {}
  assert config["optimizer"]["learning_rate"] == 1e-4


def test_a_multi_task_model_has_22_outputs_and_one_that_is_pretrained_expressions_alone():
  assert {task: len(names) for task, names in plain()["labels"].items()} == dict(
    va=2, expression=8, au=12
  )
  config = plain("stage=pretrain,debug")
  assert list(config["labels"]) == list(config["losses"]) == ["expression"]
  assert config["checkpoint"]["metric"] == "expression/f1"
  assert plain("stage=pretrain,data=ferplus")["checkpoint"]["metric"] == "expression/strict/f1"


@pytest.mark.parametrize(
  ("argument", "said"),
  [
    ("task=va", "task=va: use one of mtl, lsd"),
    ("variant=full", "variant=full: use one of reduced, paper"),
    ("stage=two", "stage=two: use one of frozen, all, pretrain"),
    ("task=lsd,stage=frozen", "stage=frozen: use one of all"),
    ("data=lsd", "data=lsd: use one of synthetic_faces, ferplus, s_aff_wild2"),
    ("task=lsd,data=s_aff_wild2", "data=s_aff_wild2: use one of synthetic_faces, ferplus, lsd"),
  ],
)
def test_other_arguments_are_refused(argument, said):
  with pytest.raises(ValueError, match=said):
    abaw4_baseline.get_config(argument)


# Learning.


@functools.cache
def started(argument):
  """The first state of a run, and its compiled step."""
  procedure = procedures.from_config(plain(argument))
  return jax.jit(procedure.init)(), jax.jit(procedure.train_step)


def learnt(argument, batches):
  """The state before and after an update with each batch, and the last metrics."""
  before, step = started(argument)
  after = before
  for batch in batches:
    after, metrics = step(after, batch)
  return before, after, metrics


def drawn(seed, rows=8):
  """A batch of noise, labelled at random, every task in about half of the rows."""
  rng = np.random.default_rng(seed)
  return {
    "image": rng.integers(0, 256, (rows, 48, 48, 3), np.uint8),
    "labels": {
      "va": rng.uniform(-1, 1, (rows, 2)).astype(np.float32),
      "expression": np.eye(8, dtype=np.float32)[rng.integers(0, 8, rows)],
      "au": rng.integers(0, 2, (rows, 12)).astype(np.float32),
    },
    "mask": {
      "va": np.repeat(np.arange(rows) % 2, 2).reshape(rows, 2).astype(np.float32),
      "expression": (np.arange(rows) < 4).astype(np.float32),
      "au": rng.integers(0, 2, (rows, 12)).astype(np.float32),
    },
  }


def of(tree):
  return {name: np.asarray(x) for name, x in paths.named(tree).items()}


def test_the_convolutions_and_their_statistics_stay_to_the_bit_and_all_else_learns():
  before, after, _ = learnt("stage=frozen,debug", [drawn(0), drawn(1), drawn(2)])
  old = of(before.params) | of(before.model_state)
  new = of(after.params) | of(after.model_state)
  moved = {name for name in old if not np.array_equal(old[name], new[name])}
  trunk = {name for name in old if name.startswith(TRUNK)}
  assert len(trunk) == 13 * 5  # kernel, bias, scale, mean and variance of each convolution
  learning = {name for name in of(before.params)} - trunk
  assert len(learning) == 2 * 2 + 3 * 2  # of the other layers, of the heads
  assert moved == learning


@pytest.mark.slow
def test_without_the_group_they_learn():
  before, after, _ = learnt("debug", [drawn(0), drawn(1)])
  old, new = (of(x.params) | of(x.model_state) for x in (before, after))
  trunk = [name for name in old if name.startswith(TRUNK)]
  assert all(not np.array_equal(old[name], new[name]) for name in trunk)


def test_what_is_not_labelled_teaches_nothing():
  batch, other = drawn(0), drawn(0)
  for task, mask in batch["mask"].items():
    mask = mask if task != "expression" else mask[:, None]
    other["labels"][task] = np.where(mask > 0, batch["labels"][task], 0.5).astype(np.float32)
  assert not np.array_equal(batch["labels"]["au"], other["labels"]["au"])
  _, one, _ = learnt("stage=frozen,debug", [batch])
  _, two, _ = learnt("stage=frozen,debug", [other])
  jax.tree.map(np.testing.assert_array_equal, of(one.params), of(two.params))
  none = batch | {"mask": jax.tree.map(np.zeros_like, batch["mask"])}
  _, _, metrics = learnt("stage=frozen,debug", [none])
  assert float(metrics["loss"]) == float(metrics["gradient_norm"]) == 0.0


@pytest.mark.slow
def test_a_frozen_trunk_is_that_of_the_run_it_starts_from_to_the_end(tiny_faces, tmp_path):
  few = dict(steps=4, evaluate__every=4, checkpoint__every=2)
  source = plain("stage=pretrain,debug", **few)
  train.run(source, tmp_path / "trunk", tiny_faces)
  config = plain("stage=frozen,debug", **few, initialise__source=str(tmp_path / "trunk"))
  where = tmp_path / "frozen"
  result = train.run(config, where, tiny_faces)
  assert set(result["scores"]) == {"validation", "validation/no_view", "test"}

  kept = lambda run, part: of(checkpoints.read(run / "checkpoints" / "4", (part,))[part])
  for part, theirs in (("params", "ema"), ("ema", "ema"), ("model_state", "model_state")):
    own, source_of = kept(where, part), kept(tmp_path / "trunk", theirs)
    trunk = [name for name in own if name.startswith(TRUNK)]
    assert len(trunk) == (26 if part == "model_state" else 39)
    for name in trunk:
      np.testing.assert_array_equal(own[name], source_of[name], err_msg=name)
  again = evaluate.run(config, where, tiny_faces)["scores"]
  assert again["test"] == pytest.approx(result["scores"]["test"], abs=1e-6)
