"""Emotion-GCN as a run: its sizes and its graph."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from affjax import experiment, procedures, state
from affjax.build import build
from configs import emotion_gcn

SEVEN = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger")


def plain(argument="debug", **changes):
  """The config as plain types; `optimizer__weight_decay=0.0` changes a leaf."""
  config = json.loads(emotion_gcn.get_config(argument).to_json_best_effort())
  config["draw_report"] = False
  for name, value in changes.items():
    *path, leaf = name.split("__")
    section = config
    for key in path:
      section = section[key]
    section[leaf] = value
  return config


@pytest.fixture(scope="module")
def faces(tiny_faces):
  return experiment.Data(plain(), tiny_faces)


# Published: 7,978,856 numbers of DenseNet-121, less 1024 * 1000 + 1000 of its classifier; and
# 300 * 512 + 512 * 1024 of the graph.
ENCODER, GRAPH = 6_953_856, 677_888


@pytest.mark.parametrize(
  ("data", "pixels", "places"), [("affectnet", 227, 49), ("aff_wild2", 112, 9)]
)
def test_the_papers_variant_has_the_published_sizes(data, pixels, places):
  config = plain(f"data={data},variant=paper")
  assert tuple(config["labels"]["expression"]) == SEVEN
  assert config["image_size"] == pixels
  options = dict(outputs={"va": 2, "expression": 7}, image_size=pixels)
  model = nnx.eval_shape(
    lambda: build(config["model"], "affjax.models", **options, rngs=nnx.Rngs(0))
  )
  learned = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  assert state.count(learned["encoder"]) == ENCODER
  assert state.count(learned["decoder"]) == GRAPH
  assert model.decoder.inner.kernel.shape == (300, 512)
  assert model.decoder.outer.kernel.shape == (512, 1024)
  assert model.decoder.vectors.shape == (9, 300)
  assert (model.encoder.num_tokens, model.encoder.width) == (places, 1024)


def test_the_papers_numbers_stand_in_its_variant():
  config = plain("data=affectnet,variant=paper")
  assert (config["batch_size"], config["steps"]) == (35, 10 * 287_651 // 35)
  optimizer = config["optimizer"]
  assert optimizer["name"] == "optim.sgd"
  assert [optimizer[k] for k in ("learning_rate", "momentum", "weight_decay")] == [1e-3, 0.9, 1e-3]
  assert config["augment"]["rotation"] * 360 == pytest.approx(30)
  assert config["losses"]["expression"]["class_weights"] == "balanced"
  assert plain("data=aff_wild2,variant=paper")["losses"]["expression"]["class_weights"] is None


@pytest.mark.parametrize(
  ("argument", "tasks"),
  [
    ("debug", {"va": 2, "expression": 8}),
    ("debug,au", {"va": 2, "expression": 8, "au": 12}),
    ("debug,head=linear", {"va": 2, "expression": 8}),
    ("debug,head=single", {"expression": 8}),
  ],
)
def test_every_head_gives_its_tasks_and_a_step_the_types_that_it_takes(argument, tasks):
  config = plain(argument)
  procedure = procedures.from_config(config)
  before = jax.eval_shape(procedure.init)
  batch = experiment.batch_shapes(config)
  out = jax.eval_shape(procedure.predict, before.params, before.model_state, batch["image"])
  assert {task: y.shape[1] for task, y in out.items()} == tasks
  after, _ = jax.eval_shape(procedure.train_step, before, batch)
  types = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)
  assert types(after) == types(before)


@pytest.mark.parametrize(
  ("argument", "said"),
  [
    ("head=gnn", "head=gnn: use one of gcn, linear, single"),
    ("variant=full", "variant=full: use one of reduced, paper"),
    ("data=ferplus", "data=ferplus: use one of synthetic_faces, affectnet, aff_wild2"),
  ],
)
def test_other_arguments_are_refused(argument, said):
  with pytest.raises(ValueError, match=said):
    emotion_gcn.get_config(argument)


# The graph.


def test_the_graph_is_that_of_the_training_split_as_it_is_seen(tiny_faces):
  config = plain("debug,au", data__view={"noise": "clean", "masks": "s_aff_wild2"})
  data = experiment.Data(config, tiny_faces)
  before = json.dumps(config)
  found = np.array(experiment.resolve(config, data)["model"]["decoder"]["adjacency"])
  assert json.dumps(config) == before
  batch = data.records("train").batch(np.arange(96))
  tasks = ("au", "expression", "va")
  values = np.concatenate([batch["labels"][task] for task in tasks], 1)
  masks = [np.broadcast_to(batch["mask"][task].reshape(96, -1), batch["labels"][task].shape)
           for task in tasks]  # fmt: skip
  mask = np.concatenate(masks, 1) > 0
  near = np.zeros((22, 22), bool)
  for i in range(22):
    for j in range(22):
      both = mask[:, i] & mask[:, j]
      x, y = values[both, i], values[both, j]
      expressions = 12 <= i < 20 and 12 <= j < 20
      if i != j and not expressions and np.ptp(x) and np.ptp(y):
        near[i, j] = abs(stats.spearmanr(x, y).statistic) >= 0.1
  assert 40 < near.sum() < 400
  np.testing.assert_array_equal((found > 0) & ~np.eye(22, dtype=bool), near)


def test_a_graph_that_the_config_gives_stays_and_without_data_nobody_has_neighbours(faces):
  given = (0.5 * np.eye(10)).tolist()
  config = plain(model__decoder__adjacency=given)
  assert experiment.resolve(config, faces)["model"]["decoder"]["adjacency"] == given
  assert experiment.resolve(plain(), None)["model"]["decoder"]["adjacency"] == np.eye(10).tolist()
  none = plain(model__decoder__graph="none")
  found = experiment.resolve(none, faces)["model"]["decoder"]["adjacency"]
  assert found == np.eye(10).tolist()
  assert experiment.resolve(plain("debug,head=linear"), faces) == plain("debug,head=linear")


def test_the_graph_is_said_in_one_line(tiny_faces):
  for changes, said in (
    ({}, "graph  10 labels, "),
    ({"model__decoder__graph": "none"}, " 0 pairs"),
  ):
    resolved, data, procedure, mesh = experiment.open_training(plain(**changes), tiny_faces)
    lines = experiment.describe(resolved, data, procedure, mesh).splitlines()
    assert sum(said in line for line in lines) == 1


def test_units_beside_the_head_of_expressions_alone_are_refused():
  with pytest.raises(ValueError, match="argument au is of several tasks, and head=single has"):
    plain("debug,au,head=single")
