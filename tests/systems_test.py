"""Every system of the table: it learns faces by heart, and its run stops, resumes and is used."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest

import affjax
from affjax import evaluate, experiment, metrics, procedures, train
from scripts.compare_systems import SYSTEMS, read_config, with_arguments

TASKS = {"va", "expression", "au"}


def plain(name, arguments=(), changes=None):
  """A system's debug config as plain types; `{"optimizer.weight_decay": 0.0}` changes a leaf."""
  read = read_config(with_arguments(SYSTEMS[name].config, [*arguments, "debug"]))
  config = json.loads(read.to_json_best_effort())
  every = {"draw_report": False, "evaluate.probe": False, "data.config": "tiny"}
  for path, value in (every | (changes or {})).items():
    *sections, leaf = path.split(".")
    functools.reduce(dict.__getitem__, sections, config)[leaf] = value
  return config


# What it can learn. Systems that are the same network learn once, and those without tasks paint.

STEADY = {"optimizer.weight_decay": 0.0, "procedure.ema_decay": 0.0}
SMALL = {"image_size": 48, "data.image_size": 48}
QUICK = {"optimizer.learning_rate": 3e-3}
HEART = {
  "vit_mtl": SMALL | {
    "steps": 120,
    "optimizer.learning_rate": 2e-3,
    "optimizer.warmup_steps": 20,
    "model.encoder.drop_path_rate": 0.0,
    "model.decoder.dropout_rate": 0.0,
  },
  "vit_mtl_plain": SMALL | QUICK | {
    "steps": 150, "optimizer.warmup_steps": 20, "model.encoder.drop_path_rate": 0.0,
  },
  "mt_transformer": {
    "image_size": 32,
    "data.image_size": 32,
    "steps": 250,
    "optimizer.learning_rate": 1e-3,
    "optimizer.groups.encoder.learning_rate": 1e-3,
    "optimizer.groups.image.learning_rate": 1e-3,
    "optimizer.warmup_steps": 20,
    "optimizer.clip_norm": 0.0,
    "model.decoder.dropout_rate": 0.0,
    "losses.expression.label_smoothing": 0.0,
    "losses.expression.logit_adjustment": None,
    "losses.au.label_smoothing": 0.0,
  },
  "emotion_gcn": {
    "steps": 200,
    "optimizer.groups.graph.learning_rate": 1e-3,
    "optimizer.warmup_steps": 20,
  },
  "emotion_gcn_linear": {"steps": 100, "optimizer.warmup_steps": 20},
  "abaw4_all": QUICK | {"steps": 100, "model.encoder.dropout_rate": 0.0},
  "abaw4_lsd": QUICK | {"steps": 150},
  "senet": QUICK | {"steps": 150},
  "emma_prior": QUICK | {"steps": 100},
  "emma": {
    "steps": 250,
    "optimizer.learning_rate": 2e-3,
    "optimizer.warmup_steps": 10,
    "model.encoder.drop_path_rate": 0.0,
  },
  "cotex": SMALL | QUICK | {
    "steps": 200,
    "optimizer.warmup_steps": 20,
    "model.encoder.variant": "mu/8",
    "model.encoder.mask_rate": 0.25,
    "optimizer.schedule": "constant",
    "procedure.agreement": 1.0,
  },
}  # fmt: skip
COUNT = 64


def learnt_by_heart(config, data_dir):
  """Scores of the very faces that the config has learnt, 64 at most, all of them in each step."""
  config["augment"] = {
    name: value if name == "erase_area" else 0.0 for name, value in config["augment"].items()
  }
  config["data"]["view"] = {}
  data = experiment.Data(config, data_dir)
  split = data.records(data.train_split)
  batch = split.batch(np.arange(len(split))[-COUNT:])
  del batch["index"]
  procedure = procedures.from_config(experiment.resolve(config, data))
  step = jax.jit(procedure.train_step, donate_argnums=0)
  state = jax.jit(procedure.init)()
  for _ in range(config["steps"]):
    state, _ = step(state, batch)
  outputs = jax.jit(procedure.predict)(state.averaged, state.model_state, batch["image"])
  scoring = evaluate.Scoring(config["labels"])
  states = {k: metrics.to_host(v) for k, v in scoring.states(outputs, batch).items()}
  return scoring.scores(states)


@pytest.mark.slow
@pytest.mark.parametrize("name", HEART)
def test_it_learns_faces_by_heart(name, tiny_faces):
  scores = learnt_by_heart(plain(name, changes=STEADY | HEART[name]), tiny_faces)
  if "p_mtl" in scores:
    assert scores["p_mtl"] > 2.9, scores
  else:
    assert scores["expression/f1"] == 1, scores
    assert scores.get("va/ccc", 1) > 0.95, scores


def test_every_network_of_the_table_learns_by_heart():
  networks = lambda names: {json.dumps(plain(name)["model"]) for name in names}
  assert networks(HEART) == networks(name for name, system in SYSTEMS.items() if system.tasks)


@pytest.mark.parametrize("name", [name for name, system in SYSTEMS.items() if system.ferplus])
def test_photographs_have_the_score_that_chooses_a_checkpoint(name, tiny_ferplus):
  config = plain(name, ["data=ferplus"], {"data.config": ""})
  evaluate.check_metric(config, experiment.Data(config, str(tiny_ferplus.data_path.parents[1])))


# A run, from end to end. What others start from runs before them; those left out differ from
# another by their decoder, or by what they start from.

NEEDED = {need for system in SYSTEMS.values() for need in system.needs}
ALIKE = {"vit_mtl", "vit_mtl_plain", "emotion_gcn_linear", "abaw4_all"}


@pytest.fixture(scope="module")
def run(tiny_faces, tmp_path_factory):
  """Name of a system -> config, folder and result of its run of six steps, made once."""
  root = tmp_path_factory.mktemp("systems")

  @functools.cache
  def of(name):
    folders = {need: str(of(need)[1]) for need in SYSTEMS[name].needs}
    start = [text.format_map(folders) for text in SYSTEMS[name].start]
    flags = [text.removeprefix("--config.") for text in start if text.startswith("--config.")]
    changes = {"image_size": 48, "data.image_size": 48, "steps": 6, "log_every": 1}
    changes |= {"evaluate.every": 6, "checkpoint.every": 3}
    changes |= dict(flag.split("=", 1) for flag in flags)
    config = plain(name, [text for text in start if not text.startswith("--")], changes)
    return config, root / name, train.run(config, root / name, tiny_faces)

  return of


def log(where):
  lines = [json.loads(line) for line in (where / "metrics.jsonl").read_text().splitlines()]
  kept = ("step", "loss", "gradient_norm", "learning_rate")
  return [{name: e[name] for name in kept} for e in lines if e["kind"] == "train"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SYSTEMS if name not in NEEDED | ALIKE])
def test_a_run_stops_resumes_and_is_used(name, run, tiny_faces, tmp_path):
  config, where, result = run(name)
  assert [entry["step"] for entry in log(where)] == [1, 2, 3, 4, 5, 6]

  half = tmp_path / "run"  # as it is where a run has ended after its third step
  shutil.copytree(where, half)
  shutil.rmtree(half / "checkpoints" / "6")
  (half / "scores.json").unlink()
  assert train.run(config, half, tiny_faces) == result
  assert log(half) == log(where)

  select = config["data"]["select"]
  found = {score.partition("/")[0] for score in result["scores"][select]}
  assert found & TASKS == set(SYSTEMS[name].tasks)
  images = experiment.Data(config, tiny_faces).records(select).batch(np.arange(3))["image"]
  prediction = affjax.load(where).predict(images)
  for task, given in (("va", prediction.va), ("au", prediction.au_probability)):
    assert list(given) == list(config["labels"].get(task, ()))
    assert all(np.isfinite(values).all() for values in given.values())
  assert set(prediction.expression) <= set(config["labels"]["expression"])
