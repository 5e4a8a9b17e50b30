"""The main job from end to end, on tiny data and eight fake devices."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from conftest import debug_config, launch

import affjax
from affjax import evaluate, monitor, train
from affjax.data import records

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def finished(tiny_faces, tmp_path_factory):
  """A run of the debug config on eight devices: its folder and what `run` returned."""
  where = tmp_path_factory.mktemp("finished")
  return where, train.run(debug_config(draw_report=True), where, tiny_faces)


def log(where, kind="train"):
  lines = [json.loads(line) for line in (where / "metrics.jsonl").read_text().splitlines()]
  return [
    {k: v for k, v in e.items() if k not in monitor.SPEED} for e in lines if e["kind"] == kind
  ]


def test_a_run_leaves_what_a_reader_needs(finished):
  where, result = finished
  assert json.loads((where / "config.json").read_text()) == debug_config(draw_report=True)
  start = json.loads((where / "starts.jsonl").read_text())
  assert start["versions"]["jax"] == jax.__version__
  assert start["command"] == [sys.executable, *sys.orig_argv[1:]]
  assert list((where / "tensorboard").glob("events*"))
  assert (where / "report.html").is_file()
  assert json.loads((where / "scores.json").read_text()) == result
  assert [e["step"] for e in log(where)] == [5, 10, 15, 20]
  assert [e["step"] for e in log(where, "validation")] == [10, 20]


def test_every_score_stands_beside_its_floor_and_p_is_the_sum(finished):
  _, result = finished
  assert list(result["scores"]) == ["validation", "validation/no_view", "test"]
  for split in result["scores"]:
    scores, floors = result["scores"][split], result["floors"][split]
    parts = ("va/ccc", "expression/f1", "au/f1")
    assert scores["p_mtl"] == pytest.approx(sum(scores[p] for p in parts))
    assert floors["p_mtl"] == pytest.approx(sum(floors[p] for p in parts))
    assert floors["va/ccc"] == 0
    assert {"expression/accuracy", "expression/cross_entropy", "au/f1/AU12"} <= set(floors)


def test_a_masked_split_is_scored_with_its_masks_and_without(finished, tiny_faces, capsys):
  where, result = finished
  again = evaluate.run(debug_config(), where, tiny_faces)
  assert again["scores"] == result["scores"]
  said = capsys.readouterr().out
  titles = [line for line in said.splitlines() if line.startswith("synthetic_faces ")]
  assert [title.partition(", step")[0] for title in titles] == [
    "synthetic_faces validation (masks s_aff_wild2/validation)",
    "synthetic_faces validation/no_view (labels as they are)",
    "synthetic_faces test",
  ]
  assert said.count("p_mtl") == 3
  seen, every = (result["scores"][name] for name in ("validation", "validation/no_view"))
  # The units are labelled for all; expressions for some, and of those the rest is scored too.
  assert seen["au/f1"] == every["au/f1"]
  assert seen["expression/cross_entropy"] != every["expression/cross_entropy"]
  best = max(log(where, "validation"), key=lambda entry: entry["p_mtl"])
  assert best["p_mtl"] == pytest.approx(seen["p_mtl"], abs=1e-6)  # which chooses
  # Without a view in the config that is all there is, and the same.
  plain = evaluate.run(debug_config(data__view__masks="none"), where, tiny_faces)
  assert plain["scores"] == {"validation": every, "test": result["scores"]["test"]}


def test_the_ceiling_and_the_probe_stand_beside_the_score(finished, tiny_faces, tmp_path, capsys):
  where, result = finished
  assert "probes" not in result  # a debug run is not to take a minute
  data_dir = tmp_path / "data"
  shutil.copytree(tiny_faces, data_dir)
  build = records.builder("synthetic_faces", "tiny", str(data_dir))
  metadata = Path(build.data_dir) / "metadata.json"
  described = json.loads(metadata.read_text())
  described["ceiling"] = {"test": {"expression/f1": 0.66, "p_mtl": 2.66}}
  metadata.write_text(json.dumps(described))
  found = evaluate.run(debug_config(evaluate__probe=True), where, str(data_dir))
  assert found["scores"] == result["scores"]
  assert found["ceilings"] == described["ceiling"]
  assert list(found["probes"]) == list(found["scores"])
  for split, scores in found["scores"].items():
    assert set(found["probes"][split]) == set(scores)
  said = capsys.readouterr().out
  *_, test = said.split("\nsynthetic_faces ")
  assert test.splitlines()[1].split() == ["score", "floor", "ceiling", "probe"]
  (line,) = [line for line in test.splitlines() if "p_mtl" in line]
  shown = [result["scores"], result["floors"], found["ceilings"], found["probes"]]
  assert line.split()[1:] == [f"{kind['test']['p_mtl']:.3f}" for kind in shown]


def test_another_view_is_another_run(finished, tiny_faces):
  with pytest.raises(ValueError, match="data.view.noise was 'clean', is 'mild'"):
    train.run(debug_config(data__view__noise="mild"), finished[0], tiny_faces)


def test_the_first_batch_is_drawn(finished):
  page = cv2.imread(str(finished[0] / train.PICTURE))
  assert page.shape[0] > 200
  assert page.shape[1] > 1000
  assert page.std() > 20


def test_the_checkpoints_that_stay_are_the_latest_and_the_best(finished):
  where, result = finished
  steps = {int(p.name) for p in (where / "checkpoints").iterdir() if p.name.isdigit()}
  best = max(log(where, "validation"), key=lambda e: e["p_mtl"])["step"]
  assert steps == {15, 20, best}
  assert result["step"] == best


def test_the_same_command_on_a_finished_run_changes_nothing(finished, tiny_faces):
  where, result = finished
  before = (where / "metrics.jsonl").read_text()
  assert train.run(debug_config(), where, tiny_faces) == result
  assert (where / "metrics.jsonl").read_text() == before


def test_a_used_folder_refuses_another_config(finished, tiny_faces):
  with pytest.raises(ValueError, match="optimizer.learning_rate was 0.001, is 0.5"):
    train.run(debug_config(optimizer__learning_rate=0.5), finished[0], tiny_faces)


def test_a_metric_that_does_not_exist_is_refused_before_the_run(tiny_faces, tmp_path):
  with pytest.raises(ValueError, match="checkpoint.metric='f1'.*p_mtl"):
    train.run(debug_config(checkpoint__metric="f1"), tmp_path / "run", tiny_faces)
  assert not (tmp_path / "run").exists()


def test_a_notebook_predicts_what_evaluation_scored(finished, tiny_faces):
  where, result = finished
  config = debug_config()
  predictor = affjax.load(str(where))
  assert predictor.step == result["step"]
  build = records.builder("synthetic_faces", "tiny", tiny_faces)
  batch = records.records(build, "test", config["labels"], 112).batch(np.arange(32))
  prediction = predictor.predict(batch["image"])
  assert len(prediction) == 32
  assert list(prediction.va) == ["valence", "arousal"]
  assert list(prediction.au_probability)[6] == "AU12"
  total = sum(prediction.expression_probability.values())
  np.testing.assert_allclose(total, np.ones(32), atol=1e-6)
  names = np.array(config["labels"]["expression"])
  right = names[batch["labels"]["expression"].argmax(1)] == prediction.expression
  assert right.mean() == pytest.approx(result["scores"]["test"]["expression/accuracy"])
  assert prediction.rows()[3]["expression"] == prediction.expression[3]


def test_a_prediction_does_not_depend_on_its_neighbours_or_on_where_the_image_is(
  finished, tmp_path
):
  predictor = affjax.load(str(finished[0]))
  images = np.random.default_rng(0).integers(0, 256, (70, 112, 112, 3), np.uint8)
  together = predictor.outputs(images)
  cv2.imwrite(str(tmp_path / "face.png"), images[69][..., ::-1])
  alone, same = predictor.outputs([tmp_path / "face.png"]), predictor.outputs(images[69:])
  for task in together:
    np.testing.assert_array_equal(alone[task], same[task])
    np.testing.assert_allclose(alone[task][0], together[task][69], atol=1e-5)


def test_a_folder_without_a_run_is_named(tmp_path):
  with pytest.raises(ValueError, match="holds no run"):
    affjax.load(str(tmp_path))


def test_another_data_set_can_be_scored(finished, tiny_faces, tiny_ferplus, capsys):
  config = debug_config(data__image_size=112)
  data_dir = str(Path(tiny_ferplus.data_dir).parent.parent)
  result = evaluate.run(config, finished[0], data_dir, data_set="ferplus")
  assert set(result["scores"]) == {"validation"}
  assert "expression/strict/f1" in result["scores"]["validation"]
  assert "va/ccc" not in result["scores"]["validation"]
  assert "expression/official/accuracy" in capsys.readouterr().out


def test_one_flipped_bit_is_named_and_the_step_before_is_used(
  finished, tiny_faces, tmp_path, capfd
):
  where = tmp_path / "run"
  config = debug_config(steps=10)
  calm = train.run(config, where, tiny_faces)
  victim = max((where / "checkpoints" / "10" / "state").rglob("*"), key=lambda p: p.stat().st_size)
  content = bytearray(victim.read_bytes())
  content[len(content) // 2] ^= 1
  victim.write_bytes(content)
  assert train.run(config, where, tiny_faces)["scores"] == calm["scores"]
  said = capfd.readouterr()
  assert f"10 refused: {victim.relative_to(where / 'checkpoints' / '10')}" in said.err
  assert "continues from step 5" in said.out
  assert (where / "checkpoints" / "damaged" / "10").is_dir()


@pytest.mark.slow
def test_devices_processes_and_placements_train_alike(tiny_faces, tmp_path):
  # A small rate: at a large one Adam makes steps of full size out of gradients that are rounding.
  same = ("--config.log_every=1", "--config.optimizer.learning_rate=1e-5", "--config.steps=10")
  same += tuple(f"--config.model.encoder.{x}" for x in ("scan=True", "depth=2", "stem=patch"))
  streamed = tmp_path / "streamed"
  for devices in (1, 8):
    where, placement = (streamed, "stream") if devices == 1 else (tmp_path / f"{devices}", "device")
    said, code = launched(where, tiny_faces, *same, placed(placement), devices=devices)
    assert code == 0, said
  two = tmp_path / "two_processes"
  pair(two, tiny_faces, *same, placed("device"))
  expected = log(streamed)
  assert len(expected) == 10
  for where in (tmp_path / "8", two):
    for entry, alone in zip(log(where), expected, strict=True):
      for name in (n for n in entry if n.startswith(("loss", "weight"))):
        assert entry[name] == pytest.approx(alone[name], rel=1e-5, abs=1e-6), (where, name)
    found = log(where, "validation")[-1]["p_mtl"]
    assert found == pytest.approx(log(streamed, "validation")[-1]["p_mtl"], abs=1e-3)
  # Two processes resume, to the bit, and from disk what they began from device memory.
  before = log(two)
  shutil.rmtree(two / "checkpoints" / "10")
  assert "continues from step 5" in pair(two, tiny_faces, *same, placed("stream"))
  assert log(two) == before
  # One process goes on where two were, and two where one was.
  for where, go_on in ((two, launched), (streamed, pair)):
    shutil.rmtree(where / "checkpoints" / "10")
    said = go_on(where, tiny_faces, *same, placed("stream"))
    assert "continues from step 5" in (said if go_on is pair else said[0])
    for entry, alone in zip(log(where), expected, strict=True):
      assert entry["loss"] == pytest.approx(alone["loss"], rel=1e-5), where


def placed(where):
  return f"--config.data.placement={where}"


def launched(*arguments, **options):
  process = launch(*arguments, **options)
  return process.communicate()[0], process.returncode


def pair(where, data_dir, *arguments):
  """A run of two processes with two devices each; what the first of them said."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  cluster = (f"--coordinator=localhost:{port}", "--processes=2")
  both = [
    launch(where, data_dir, *arguments, *cluster, f"--process={i}", devices=2) for i in range(2)
  ]
  said = [process.communicate()[0] for process in both]
  assert [process.returncode for process in both] == [0, 0], said
  return said[0]


@pytest.mark.slow
def test_a_checkpoint_of_eight_devices_restores_on_one(finished, tiny_faces):
  where, _ = finished
  process = launch(where, tiny_faces, "--mode=evaluate", "--splits=test", devices=1)
  said = process.communicate()[0]
  assert process.returncode == 0, said
  scores = json.loads((where / "scores.json").read_text())["scores"]["test"]
  shown = next(line for line in said.splitlines() if "p_mtl" in line).split()[1]
  assert float(shown) == pytest.approx(scores["p_mtl"], abs=2e-3)


@pytest.mark.slow
def test_nothing_is_lost_when_a_run_is_ended_by_a_signal(tiny_faces, tmp_path):
  result = subprocess.run(
    [sys.executable, "scripts/kill_test.py", "--kills=6", "--each=6",
     "--moments=compile,step,evaluation,save,call", "--workers=0,2,device",
     f"--data_dir={tiny_faces}", f"--keep={tmp_path}"],
    cwd=ROOT,
    env={**os.environ, "XLA_FLAGS": ""},
    capture_output=True,
    text=True,
  )  # fmt: skip
  assert result.returncode == 0, result.stdout + result.stderr
  assert "equal to the bit" in result.stdout
  assert "; 0 bad" in result.stdout
  kills = [json.loads(line) for line in (tmp_path / "kills.jsonl").read_text().splitlines()]
  assert sum("signal" in kill for kill in kills) == 6
  for kill in (k for k in kills if k.get("signal") in ("SIGTERM", "SIGINT")):
    assert kill["lost"] == 0
