"""Outputs and features in files: those of the model, of the right rows, and learnt from again."""

import json

import jax
import numpy as np
import pytest
from conftest import debug_config, save_run

import affjax
from affjax import checkpoints, experiment, extract, train
from affjax.data import features, records
from configs import temporal

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """Two runs, with and without task tokens."""
  root = tmp_path_factory.mktemp("extracted")
  return {name: save_run(root / name, debug_config(argument))
          for name, argument in (("tokens", "debug"), ("plain", "debug,plain=true"))}  # fmt: skip


@pytest.fixture(scope="module")
def made(runs, tiny_faces):
  """What was extracted of the one without."""
  output = runs["plain"].parent / "features"
  options = [f"--checkpoint={runs['plain']}", f"--output={output}", f"--data_dir={tiny_faces}"]
  extract.main(options)
  return output


def tiny(data_dir):
  return records.builder("synthetic_faces", "tiny", data_dir)


def test_outputs_are_those_of_the_model_and_labels_those_of_the_data_set(runs, made, tiny_faces):
  predictor = affjax.load(runs["plain"])
  for split in SPLITS:
    found, table = np.load(made / f"{split}.npz"), records.label_table(tiny(tiny_faces), split)
    for name in ("key", "person", "labels/va", "labels/au", "mask/au"):
      np.testing.assert_array_equal(found[name], table[name])
    rows = np.array([0, 7, len(found["key"]) - 1])
    images = records.records(tiny(tiny_faces), split, {}, 112).batch(rows)["image"]
    for task, values in predictor.outputs(images).items():
      np.testing.assert_allclose(found[f"outputs/{task}"][rows], values, atol=1e-5)


def test_without_tokens_the_outputs_are_one_dense_layer_of_the_features(runs, made):
  saved = checkpoints.Checkpoints(runs["plain"] / "checkpoints", read_only=True)
  procedure = affjax.load(runs["plain"])._procedure
  state, _ = saved.restore(3, jax.eval_shape(procedure.init))
  leaves = jax.tree.leaves(state.averaged["model"]["decoder"])
  kernel = next(x for x in leaves if x.shape[-1] == 12 and x.ndim == 2)
  bias = next(x for x in leaves if x.shape == (12,))
  vectors, found = np.load(made / "test.npy"), np.load(made / "test.npz")
  np.testing.assert_allclose(vectors @ kernel + bias, found["outputs/au"], atol=1e-4)


def test_tokens_that_the_encoder_carried_stand_behind_the_mean_of_the_image(runs, tiny_faces):
  output = runs["tokens"].parent / "tokens-features"
  known = extract.extract(runs["tokens"], output, splits=("test",), data_dir=tiny_faces)
  procedure = affjax.load(runs["tokens"])._procedure
  width = jax.eval_shape(procedure.init).params["model"]["decoder"]["tokens"].shape
  assert known["width"] == np.load(output / "test.npy").shape[1] == (1 + width[0]) * width[1]


def test_the_same_checkpoint_may_add_splits_and_another_is_refused(runs, tiny_faces, tmp_path):
  options = dict(data_dir=tiny_faces, vectors=False)
  extract.extract(runs["plain"], tmp_path, splits=("test",), **options)
  known = extract.extract(runs["plain"], tmp_path, splits=("validation",), **options)
  assert known["splits"] == {"test": 32, "validation": 32}
  assert not list(tmp_path.glob("*.npy"))
  with pytest.raises(ValueError, match="what was extracted of another run"):
    extract.extract(runs["tokens"], tmp_path, splits=("test",), **options)
  with pytest.raises(ValueError, match="name whole splits"):
    extract.extract(runs["plain"], tmp_path, splits=("test:labelled",), **options)
  with pytest.raises(ValueError, match="extracted with --outputs_only: there are outputs alone"):
    features.described(tmp_path)


def opened(made, data_dir, train="train", select="validation"):
  config = debug_config()
  data = {"train": train, "select": select, "report": (), "view": {}, "features": str(made)}
  config["data"] |= data
  config["model"]["encoder"] = {"name": "features.Precomputed", "width": width_of(made)}
  return experiment.Data(config, data_dir)


def width_of(made):
  return json.loads((made / "features.json").read_text())["width"]


def test_features_are_read_in_place_of_images_for_the_same_rows(made, tiny_faces):
  data = opened(made, tiny_faces, "train+test:not_fold=0/2", "train+test:fold=0/2")
  whole = np.concatenate([np.load(made / "train.npy"), np.load(made / "test.npy")])
  keys = np.concatenate([np.load(made / f"{split}.npz")["key"] for split in ("train", "test")])
  for name in (data.train_split, data.select):
    split, own = data.records(name), data.table(name)["key"]
    rows = np.array([[len(split) - 1, -1], [0, 3]])
    batch = split.batch(rows)
    assert batch["image"].shape == (2, 2, width_of(made))
    assert not batch["image"][0, 1].any()
    assert not batch["mask"]["au"][0, 1].any()
    for place in ((0, 0), (1, 0), (1, 1)):
      row = keys.tolist().index(own[rows[place]])
      np.testing.assert_array_equal(batch["image"][place], whole[row])


def test_features_of_other_data_or_damaged_ones_are_refused(made, tiny_faces, tmp_path):
  def changed(**fields):
    for path in made.iterdir():
      (tmp_path / path.name).write_bytes(path.read_bytes())
    facts = json.loads((made / "features.json").read_text()) | fields
    (tmp_path / "features.json").write_text(json.dumps(facts))

  changed(data={"name": "ferplus", "fingerprint": "0123456789abcdef"})
  with pytest.raises(ValueError, match="features of ferplus 0123456789ab, the data set is synth"):
    opened(tmp_path, tiny_faces)
  changed(splits={"test": 32})
  with pytest.raises(ValueError, match="no features of train; there are those of test"):
    opened(tmp_path, tiny_faces)
  changed()
  np.save(tmp_path / "train.npy", np.zeros((5, width_of(made)), np.float32))
  with pytest.raises(ValueError, match=r"train\.npy: float32 \[5, \d+\], expected"):
    opened(tmp_path, tiny_faces)
  (tmp_path / "train.npy").write_bytes(b"\x93NUMPY")
  with pytest.raises(ValueError, match=r"train\.npy: cannot be read"):
    opened(tmp_path, tiny_faces)
  (tmp_path / "features.json").unlink()
  with pytest.raises(ValueError, match=r"no features\.json in it: make one by"):
    features.find(tmp_path, tiny(tiny_faces), "", ("train",))


@pytest.mark.slow
def test_a_shallow_model_learns_from_features_of_pictures_and_is_scored_on_a_fold(
  made, tiny_faces, tmp_path
):
  argument = f"data=synthetic_faces/tiny,features={made},temporal=shallow,steps=6"
  config = json.loads(temporal.get_config(argument).to_json_best_effort())
  config["data"] |= {"train": "train+validation:not_fold=0/4", "select": "train+test:fold=1/4"}
  scores = train.run(config, tmp_path / "run", tiny_faces)["scores"]
  assert set(scores) == {"train+test:fold=1/4", "test"}
  assert all(np.isfinite(value) for of_split in scores.values() for value in of_split.values())
  with pytest.raises(ValueError, match=f"the run takes features of {width_of(made)} numbers"):
    affjax.load(tmp_path / "run").outputs(np.zeros((1, 112, 112, 3), np.uint8))
