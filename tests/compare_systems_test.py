"""The table of systems: what is run for it, and what it says of what was found."""

import json

import numpy as np
import pytest
from scipy import stats

from scripts import compare_systems
from scripts.compare_systems import SYSTEMS


def options(*arguments):
  return compare_systems.parse(list(arguments))


def test_what_a_system_starts_from_stands_before_it():
  names = list(SYSTEMS)
  for name, system in SYSTEMS.items():
    for need in system.needs:
      assert names.index(need) < names.index(name)
  assert SYSTEMS["mae_vit_mtl"].needs == ["mae"]


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("data", compare_systems.DATA)
def test_every_system_sees_as_many_images_whatever_its_batches(name, data):
  if data == "ferplus" and not SYSTEMS[name].ferplus:
    pytest.skip("it is not for photographs")
  runs = {need: f"runs/{need}" for need in SYSTEMS[name].needs}
  given = options(f"--data={data}", "--images=10000", "--", "--data_dir=/x")
  command, *flags = compare_systems.command(SYSTEMS[name], given, runs)
  config = compare_systems.read_config(command)
  assert 10_000 - config.batch_size < config.steps * config.batch_size <= 10_000
  assert config.data.name == data
  assert set(config.labels) == set(SYSTEMS[name].tasks)
  periods = [int(f.partition("=")[2]) for f in flags if "evaluate.every" in f]
  assert [-(-config.steps // period) for period in periods] == [3]
  assert flags[-1] == "--data_dir=/x"
  # As s-Aff-Wild2's, whatever the config says.
  masks = "--config.data.view.masks=s_aff_wild2" in flags
  assert masks == (data == "synthetic_faces" and bool(config.labels) and not SYSTEMS[name].lsd)


@pytest.mark.parametrize("flag", ["--config.steps=5", "--config.batch_size=8", "--config.seed=1"])
def test_what_would_make_it_unfair_is_refused(flag, capsys):
  with pytest.raises(SystemExit):
    options("--seeds=2", "--", flag)
  assert f"{flag}: all see as many images" in capsys.readouterr().err


def test_a_run_starts_from_what_ran_before_it_with_the_same_seed(tmp_path):
  given = options("--debug", f"--workdir={tmp_path}")
  where = compare_systems.folder(given, "mae", 2)
  assert where == tmp_path / "synthetic_faces" / "mae" / "as-it-is" / "seed=2"
  command = compare_systems.command(SYSTEMS["mae_vit_mtl"], given, {"mae": where})
  assert command[0] == "configs/vit_mtl.py:debug"
  assert f"--config.initialise.source={where}" in command
  given.data = "ferplus"
  assert (
    compare_systems.command(SYSTEMS["mae"], given, {})[0] == "configs/mae.py:data=ferplus,debug"
  )


def test_what_is_asked_for_comes_with_what_it_starts_from():
  assert compare_systems.chosen("mae_vit_mtl,vit_mtl", "ferplus") == [
    "vit_mtl",
    "mae",
    "mae_vit_mtl",
  ]
  assert compare_systems.chosen("", "synthetic_faces") == list(SYSTEMS)
  with pytest.raises(ValueError, match="vit is none that --data=synthetic_faces has: vit_mtl, "):
    compare_systems.chosen("vit", "synthetic_faces")
  with pytest.raises(ValueError, match="emotion_gcn is none that --data=ferplus has: vit_mtl, "):
    compare_systems.chosen("emotion_gcn", "ferplus")


# The tables.


def row(scores, **other):
  found = dict(split="test", expressions=["a", "b"], floors={n: 0.25 for n in scores})
  return (
    found | dict(scores=scores, images=10, parameters=1_500_000, images_per_second=99.6) | other
  )


def test_the_table_has_means_and_intervals_and_the_floors_below():
  p = [1.0, 1.5, 2.0]
  rows = {
    "vit_mtl": row({"va/ccc": [0.8, 0.8, 0.8], "p_mtl": p}),
    "emotion_gcn": row({"va/ccc": [-0.25, -0.25, -0.25]}, parameters=20_000),
    "senet": {"refused": "no such thing"},
    "mae": row({"reconstruction/r2": [0.5]}, expressions=[], floors={"reconstruction/r2": 0.0}),
  }
  head, _, vit, gcn, mae, *floors, refused = compare_systems.table(rows).splitlines()
  half = p[1] - stats.ttest_1samp(p, 0).confidence_interval().low
  assert head == "| system | CCC | P | r2 of what is hidden | parameters | images/s |"
  assert vit == f"| vit_mtl | .800 ± .000 | 1.500 ± {half:.3f} | - | 1.50 M | 100 |"
  assert gcn == "| emotion_gcn | -.250 ± .000 | - | - | .02 M | 100 |"
  assert mae == "| mae | - | - | .500 | 1.50 M | 100 |"
  assert floors == [
    "| best constant answers, test, 2 expressions | .250 | .250 | - |  |  |",
    "| best constant answers, test | - | - | .000 |  |  |",
  ]
  assert refused == "senet: refused: no such thing"


def test_the_readmes_table_has_every_system_with_its_score_of_each_data_set():
  found = {
    "synthetic_faces": {"vit_mtl": row({"p_mtl": [1.5], "va/ccc": [0.5]})},
    "ferplus": {"vit_mtl": row({"expression/strict/accuracy": [0.8]})},
  }
  lines = compare_systems.readme(found).splitlines()
  assert len(lines) == 2 + len(SYSTEMS)
  assert lines[2].startswith("| 13 | [Tallec et al., 2022](https://arxiv.org/abs/2208.03506) | ")
  assert "[`vit_mtl`](configs/vit_mtl.py)" in lines[2]
  assert lines[2].endswith("| P 1.500 | strict accuracy .800 |")
  assert lines[-1].endswith("| - | - |")
  for name, system in SYSTEMS.items():
    assert system.verified, name
    assert system.inferred, name


@pytest.mark.slow
def test_it_runs_what_is_missing_and_gathers_what_is_there(tiny_faces, tmp_path, capsys):
  command = ["--debug", "--only=emotion_gcn_linear", "--seeds=2", "--markdown"]
  command += [f"--workdir={tmp_path}", "--", f"--data_dir={tiny_faces}", "--config.image_size=32"]
  command += ["--config.data.image_size=32"]
  compare_systems.compare(command)
  said = capsys.readouterr().out
  runs = [tmp_path / f"synthetic_faces/emotion_gcn_linear/as-it-is/seed={seed}" for seed in (0, 1)]
  scores = [json.loads((run / "scores.json").read_text())["scores"]["test"] for run in runs]
  kept = json.loads((tmp_path / "compare.json").read_text())
  found = kept["synthetic_faces"]["emotion_gcn_linear"]
  assert found["scores"]["va/ccc"] == [s["va/ccc"] for s in scores]
  assert (found["images"], found["split"]) == (320, "test")
  mean = np.mean([s["expression/f1"] for s in scores])
  assert f"{mean:.3f}".removeprefix("0") in said

  # What is there is not run again, and what else the folder holds stays.
  kept["synthetic_faces"]["vit_mtl"] = row({"p_mtl": [1.0]})
  (tmp_path / "compare.json").write_text(json.dumps(kept))
  before = (runs[0] / "scores.json").stat().st_mtime_ns
  compare_systems.compare(command)
  assert (runs[0] / "scores.json").stat().st_mtime_ns == before
  assert json.loads((tmp_path / "compare.json").read_text()) == kept
  assert capsys.readouterr().out.startswith("| system | CCC | F1 expression | P | parameters")
