import json

import pytest

from affjax import workdir

CONFIG = {
  "steps": 100,
  "log_every": 10,
  "mesh": {"data": -1, "model": 1},
  "data": {"name": "ferplus", "workers": 0, "threads": 2},
  "evaluate": {"every": 50, "batch_size": 64},
  "checkpoint": {"every": 20, "keep_last": 2},
  "labels": {"va": ["valence", "arousal"]},
  "optimizer": {"learning_rate": 0.001},
}


def changed(path, value):
  config = json.loads(json.dumps(CONFIG))
  *folders, name = path.split(".")
  section = config
  for folder in folders:
    section = section[folder]
  section[name] = value
  return config


@pytest.fixture
def used(tmp_path):
  workdir.record(tmp_path, CONFIG, {"devices": ["cpu:0"]})
  return tmp_path


def test_a_config_survives_being_recorded(used):
  assert workdir.read_config(used) == CONFIG
  workdir.check(used, CONFIG)


@pytest.mark.parametrize(
  "path",
  [
    "log_every",
    "evaluate.every",
    "checkpoint.every",
    "data.workers",
    "data.threads",
    "data.placement",
    "mesh.data",
    "mesh.model",
  ],
)
def test_fields_that_change_no_bit_of_a_run_may_change(used, path):
  workdir.check(used, changed(path, 4))


@pytest.mark.parametrize(
  ("path", "value", "said"),
  [
    ("steps", 200, "steps was 100, is 200"),
    ("data.name", "rafdb", "data.name was 'ferplus', is 'rafdb'"),
    ("evaluate.batch_size", 8, "evaluate.batch_size was 64, is 8"),
    ("optimizer.learning_rate", 0.1, "optimizer.learning_rate was 0.001, is 0.1"),
    ("optimizer.log_every", 1, "optimizer.log_every was 'absent', is 1"),  # only the name is alike
    ("labels.va", ["arousal", "valence"], "labels.va was"),
  ],
)
def test_any_other_difference_is_named(used, path, value, said):
  with pytest.raises(ValueError, match="another config") as error:
    workdir.check(used, changed(path, value))
  assert said in str(error.value)
  assert str(used) in str(error.value)


def test_all_differences_are_named_at_once_and_the_free_ones_are_not():
  new = changed("steps", 200) | {"seed": 1, "log_every": 1}
  del new["optimizer"]
  assert [d.split()[0] for d in workdir.differences(CONFIG, new)] == [
    "optimizer.learning_rate",
    "seed",
    "steps",
  ]


def test_a_folder_without_a_run_may_be_used(tmp_path):
  workdir.check(tmp_path, CONFIG)
  workdir.check(tmp_path / "new", CONFIG)


def test_reading_a_folder_without_a_run_says_what_to_check(tmp_path):
  with pytest.raises(ValueError, match="holds no run.*--workdir"):
    workdir.read_config(tmp_path)


def test_the_config_is_written_once_and_every_start_is_noted(used):
  workdir.record(used, changed("log_every", 1), {"devices": ["cuda:0"]})
  assert workdir.read_config(used) == CONFIG
  starts = [json.loads(line) for line in (used / "starts.jsonl").read_text().splitlines()]
  assert [start["devices"] for start in starts] == [["cpu:0"], ["cuda:0"]]
  for start in starts:
    assert set(start["versions"]) >= {"jax", "flax", "affjax"}
    assert start["command"]
    assert "git" in start
  assert sorted(path.name for path in used.iterdir()) == ["config.json", "starts.jsonl"]


def test_a_missing_folder_is_made(tmp_path):
  workdir.record(tmp_path / "a" / "b", CONFIG, {})
  assert workdir.read_config(tmp_path / "a" / "b") == CONFIG


def test_a_log_is_read_but_for_a_last_line_that_a_kill_cut_short(tmp_path):
  log = tmp_path / "log"
  assert workdir.entries(log) == []
  for text, found in (("", []), ('{"a": 1}\n', [{"a": 1}]), ('{"a": 1}\n{"a": 2', [{"a": 1}])):
    log.write_text(text)
    assert workdir.entries(log) == found


@pytest.mark.parametrize("text", ["{\n", "[1]", "1\n", '{"a": 1\n{"a": 2}\n', "\xff"])
def test_a_log_that_is_none_is_named(tmp_path, text):
  (tmp_path / "log").write_bytes(text.encode("latin1"))
  with pytest.raises(ValueError, match="log cannot be read"):
    workdir.entries(tmp_path / "log")
