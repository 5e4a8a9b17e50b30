"""SENet as a run: its sizes, its gates, and the score of ABAW1."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from affjax import experiment, metrics, procedures, state
from affjax.build import build
from configs import senet

SEVEN = ("neutral", "anger", "disgust", "fear", "happiness", "sadness", "surprise")


def plain(argument="debug", **changes):
  """The config as plain types; `optimizer__learning_rate=0.1` changes a leaf."""
  config = json.loads(senet.get_config(argument).to_json_best_effort())
  config["draw_report"] = False
  for name, value in changes.items():
    *path, leaf = name.split("__")
    section = config
    for key in path:
      section = section[key]
    section[leaf] = value
  return config


def built(config, classes=7):
  """The config's model, without an array."""
  options = dict(outputs={"expression": classes}, image_size=config["image_size"])
  return nnx.eval_shape(
    lambda: build(config["model"], "affjax.models", **options, rngs=nnx.Rngs(0))
  )


def test_the_papers_variant_has_the_published_sizes():
  config = plain("data=aff_wild2,variant=paper")
  assert tuple(config["labels"]["expression"]) == SEVEN
  learned = lambda model: nnx.to_pure_dict(nnx.state(model, nnx.Param))
  # Published: 28,088,024 with a classifier of 1,000 classes.
  assert state.count(learned(built(config, classes=1000))) == 28_088_024
  model = built(config)
  assert state.count(learned(model.encoder)) == 28_088_024 - (2048 * 1000 + 1000)
  assert (model.encoder.width, len(model.encoder.blocks)) == (2048, 3 + 4 + 6 + 3)
  assert model.encoder.stem.kernel.shape == (7, 7, 3, 64)
  last = model.encoder.blocks[15]
  assert last.layers[1].kernel.shape == (3, 3, 512, 512)
  assert last.gate.reduce.kernel.shape == (2048, 2048 // 16)
  plain_one = plain("data=aff_wild2,variant=paper", model__encoder__gates=False)
  assert state.count(learned(built(plain_one, classes=1000))) == 25_557_032


def test_what_is_given_counts_and_the_smallest_variant_is_never_the_papers():
  config = plain("variant=paper")
  assert config["data"]["name"] == "aff_wild2"
  assert config["checkpoint"]["metric"] == "expression/abaw2"
  small = plain("variant=paper,debug,steps=3,batch_size=4")
  assert (small["steps"], small["batch_size"]) == (3, 4)
  assert small["model"]["encoder"]["multiplier"] < 1
  assert plain("variant=paper,batch_size=99999999")["steps"] == 1


def test_the_papers_numbers_stand_in_its_variant():
  config = plain("data=aff_wild2,variant=paper")
  optimizer = config["optimizer"]
  assert optimizer["name"] == "optim.sgd"
  assert (optimizer["learning_rate"], optimizer["momentum"]) == (1e-3, 0.9)
  assert config["losses"]["expression"]["class_weights"] == "balanced"
  assert (config["data"]["name"], config["data"]["config"]) == ("aff_wild2", "expression")


@pytest.mark.parametrize(
  ("argument", "said"),
  [
    ("variant=full", "variant=full: use one of reduced, paper"),
    ("data=s_aff_wild2", "data=s_aff_wild2: use one of synthetic_faces, ferplus, aff_wild2"),
  ],
)
def test_other_arguments_are_refused(argument, said):
  with pytest.raises(ValueError, match=said):
    senet.get_config(argument)


def test_gates_that_are_open_wide_are_the_network_without_gates():
  """Their sigmoids at 1: the same numbers come out, in training and after."""
  config, without = (
    plain(model__encoder__gates=g, model__encoder__stages=1) for g in (True, False)
  )
  procedure, gateless = procedures.from_config(config), procedures.from_config(without)
  images = np.random.default_rng(0).integers(0, 256, (4, 48, 48, 3), np.uint8)
  params = jax.jit(procedure.init)().params
  model_state = jax.jit(gateless.init)().model_state
  for block in params["model"]["encoder"]["blocks"].values():
    expand = block["gate"]["expand"]
    expand["kernel"] = jnp.zeros_like(expand["kernel"])
    expand["bias"] = jnp.full_like(expand["bias"], 100.0)
  open_wide = jax.jit(procedure.predict)(params, model_state, images)["expression"]
  for block in params["model"]["encoder"]["blocks"].values():
    block.pop("gate")
  expected = jax.jit(gateless.predict)(params, model_state, images)["expression"]
  np.testing.assert_allclose(open_wide, expected, atol=1e-6)
  assert np.ptp(expected) > 0.01


def test_the_score_of_abaw1_is_that_of_the_published_numbers():
  score = metrics.expression_abaw2(0.33, 0.63)
  assert score == pytest.approx(0.67 * 0.33 + 0.33 * 0.63)
  assert f"{score:.2f}" == "0.43"


def test_classes_weigh_inversely_to_how_often_they_occur(tiny_faces):
  config = plain()
  data = experiment.Data(config, tiny_faces)
  weights = np.array(experiment.resolve(config, data)["losses"]["expression"]["class_weights"])
  labels = data.records("train").batch(np.arange(96))["labels"]["expression"]
  counts = labels.sum(0)
  seen = counts > 0
  assert seen.sum() > 4
  shares = weights[seen] * counts[seen]
  np.testing.assert_allclose(shares, shares[0], rtol=1e-5)


def test_a_batch_without_expressions_teaches_nothing():
  config = plain(losses__expression__class_weights=None, model__encoder__stages=1)
  procedure = procedures.from_config(config)
  rng = np.random.default_rng(0)
  batch = {
    "image": rng.integers(0, 256, (4, 48, 48, 3), np.uint8),
    "labels": {"expression": np.eye(8, dtype=np.float32)[rng.integers(0, 8, 4)]},
    "mask": {"expression": np.zeros(4, np.float32)},
  }
  _, metrics = jax.jit(procedure.train_step)(jax.jit(procedure.init)(), batch)
  assert float(metrics["loss"]) == float(metrics["gradient_norm"]) == 0.0
