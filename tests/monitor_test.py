import contextlib
import json
import math
import struct
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest
from conftest import debug_config
from tensorboardX.proto import event_pb2

from affjax import cost, monitor, train

VALUES = {"loss": 1.5, "loss/va": 0.5, "weight/va": 0.25, "loss/au": 0.0, "weight/au": 0.0}


def watch(folder, start=0, **options):
  options = dict(tasks=("va", "au"), steps=100, batch_size=8, primary=True) | options
  return monitor.Monitor(folder, start=start, **options)


def log(folder):
  return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def events(folder):
  """(tag, step) -> value, and the steps from which on older events are hidden."""
  scalars, purged = {}, []
  for path in sorted((folder / "tensorboard").iterdir()):
    data = path.read_bytes()
    while data:
      (length,) = struct.unpack("<Q", data[:8])
      event = event_pb2.Event.FromString(data[12 : 12 + length])
      data = data[16 + length :]
      if event.HasField("session_log"):
        purged.append(event.step)
      for value in event.summary.value:
        scalars[value.tag, event.step] = value.simple_value
  return scalars, purged


# The log of a run that is continued.


def test_lines_of_later_steps_are_dropped(tmp_path):
  path = tmp_path / "metrics.jsonl"
  lines = [json.dumps({"step": step, "kind": "train", "loss": 1.0}) for step in (10, 20, 30, 20)]
  path.write_text("\n".join(lines) + "\n")
  monitor.cut_back(path, 20, scored=True)
  assert path.read_text() == "\n".join([lines[0], lines[1], lines[3]]) + "\n"


@pytest.mark.parametrize("length", [1, 9, 20])
def test_a_last_line_that_a_kill_cut_short_is_dropped(tmp_path, length):
  path = tmp_path / "metrics.jsonl"
  line = json.dumps({"step": 10, "kind": "train", "loss": 1.0})
  path.write_text(line + "\n" + line[:length])
  monitor.cut_back(path, 10, scored=True)
  assert path.read_text() == line + "\n"


def test_a_whole_last_line_is_kept_though_its_end_is_missing(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 10}')
  monitor.cut_back(path, 10, scored=True)
  assert path.read_text() == '{"step": 10}\n'


@pytest.mark.parametrize("scored", [True, False])
def test_the_evaluation_of_the_last_step_is_kept_if_it_has_its_score(tmp_path, scored):
  path = tmp_path / "metrics.jsonl"
  kinds = [(5, "validation"), (10, "train"), (10, "nonfinite"), (10, "validation")]
  path.write_text("".join(json.dumps({"step": s, "kind": k}) + "\n" for s, k in kinds))
  monitor.cut_back(path, 10, scored)
  assert [(e["step"], e["kind"]) for e in log(tmp_path)] == kinds[: None if scored else -1]


def test_two_starts_within_a_second_have_files_of_their_own(tmp_path):
  for _ in range(2):
    result = subprocess.run(
      [sys.executable, "-c", "import sys, pathlib; from affjax import monitor;"
       "monitor._Events(pathlib.Path(sys.argv[1]), 1).close()", str(tmp_path / "tensorboard")],
    )  # fmt: skip
    assert result.returncode == 0
  assert len(list((tmp_path / "tensorboard").iterdir())) == 2


def test_a_log_that_is_not_there_is_not_made(tmp_path):
  monitor.cut_back(tmp_path / "metrics.jsonl", 10, scored=True)
  assert not list(tmp_path.iterdir())


def test_a_continued_run_has_each_step_once(tmp_path):
  with watch(tmp_path) as first:
    for step in (5, 10, 15):
      first.train(step, VALUES)
  with watch(tmp_path, start=10) as second:
    for step in (15, 20):
      second.train(step, VALUES | {"loss": 7.0})
  assert [(line["step"], line["loss"]) for line in log(tmp_path)] == [
    (5, 1.5),
    (10, 1.5),
    (15, 7.0),
    (20, 7.0),
  ]
  assert 11 in events(tmp_path)[1]  # TensorBoard hides what the first run wrote from there on


def test_a_run_that_starts_anew_drops_the_log_of_one_that_never_saved(tmp_path):
  with watch(tmp_path) as first:
    first.write(0, "validation", {"au/f1": 0.1})
    first.train(5, VALUES)
  with watch(tmp_path) as second:
    second.train(5, VALUES)
  assert [line["step"] for line in log(tmp_path)] == [5]


# What is written.


def test_numbers_go_to_the_log_and_to_tensorboard(tmp_path, capsys):
  with watch(tmp_path) as run:
    run.train(5, VALUES)
    run.write(5, "validation", {"va/ccc": 0.25})
  train, validation = log(tmp_path)
  assert train.items() >= {"step": 5, "kind": "train", **VALUES}.items()
  assert validation == {"step": 5, "kind": "validation", "va/ccc": 0.25}
  scalars, _ = events(tmp_path)
  assert scalars["train/loss", 5] == 1.5
  assert scalars["validation/va/ccc", 5] == 0.25
  assert {tag for tag, _ in scalars} >= {f"train/{name}" for name in VALUES}
  assert "step 5/100" in capsys.readouterr().out


def test_lines_are_on_disk_at_once(tmp_path):
  with watch(tmp_path) as run:
    run.train(5, VALUES)
    assert [line["step"] for line in log(tmp_path)] == [5]


def test_only_the_primary_process_writes_and_prints(tmp_path, capsys):
  with watch(tmp_path, primary=False) as run:
    run.train(5, VALUES)
    run.say("hello")
  assert not list(tmp_path.iterdir())
  assert capsys.readouterr().out == ""


class Clock:
  def __init__(self):
    self.now = 100.0

  def perf_counter(self):
    return self.now

  time = perf_counter


def test_speed_leaves_pauses_out_and_says_how_long_the_run_waited_for_data(tmp_path, monkeypatch):
  clock = Clock()
  monkeypatch.setattr(monitor, "time", clock)
  with watch(tmp_path) as run:
    clock.now += 3
    with run.spending("data"):
      clock.now += 1
    with run.spending("evaluation"):
      clock.now += 6
    run.train(10, VALUES)
    clock.now += 2
    run.train(20, VALUES)
  first, second = log(tmp_path)
  assert first["images_per_second"] == pytest.approx(10 * 8 / 4)
  assert first["waiting_for_data"] == pytest.approx(1 / 4)
  assert second["images_per_second"] == pytest.approx(10 * 8 / 2)  # nothing is counted twice
  assert second["waiting_for_data"] == 0


def test_speed_of_a_continued_run_counts_its_own_steps(tmp_path, monkeypatch):
  clock = Clock()
  monkeypatch.setattr(monitor, "time", clock)
  with watch(tmp_path, start=50) as run:
    clock.now += 4
    run.train(60, VALUES)
  assert log(tmp_path)[0]["images_per_second"] == pytest.approx(10 * 8 / 4)


def test_mfu_is_of_the_time_that_steps_have_and_of_the_peak(tmp_path, monkeypatch):
  clock = Clock()
  monkeypatch.setattr(monitor, "time", clock)
  with watch(tmp_path, flops=3e12, peak=cost.Peak(10.0, "a guess")) as run:
    clock.now += 5
    with run.spending("checkpoints"):
      clock.now += 4
    run.train(10, VALUES)
  (line,) = log(tmp_path)
  assert line["teraflops"] == pytest.approx(10 * 3 / 5)
  assert line["mfu"] == pytest.approx(0.6)
  assert 0.05 < line["memory_gb"] < 1000


def test_a_run_ends_with_what_its_time_went_to(tmp_path, monkeypatch, capsys):
  clock = Clock()
  monkeypatch.setattr(monitor, "time", clock)
  monkeypatch.setattr(monitor._compiling(), "seconds", 100.0)  # of runs before
  with watch(tmp_path, start=10) as run:
    for on, seconds in (("data", 1), ("evaluation", 6), ("checkpoints", 2), ("data", 1)):
      with run.spending(on):
        clock.now += seconds
    clock.now += 30
    run.train(20, VALUES)
    found = run.summary()
  expected = {
    "seconds": 40, "steps": 30, "compile": 0, "data": 2, "evaluation": 6, "checkpoints": 2,
    "goodput": 0.75,
  }  # fmt: skip
  assert found == pytest.approx(expected)
  assert log(tmp_path)[-1] == {"step": 20, "kind": "time", **found}
  said = capsys.readouterr().out
  assert "75.0% of 40 s in steps; compile 0.0 s, data 2.0 s, evaluation 6.0 s" in said


def test_what_compiles_counts_as_compiling_wherever_it_happens(tmp_path):
  with watch(tmp_path) as run:
    with run.spending("evaluation"):
      slow = lambda x: jax.lax.scan(lambda c, y: (jnp.sin(c @ y), jnp.fft.fft(c)), x, x[None])
      jax.jit(slow)(jnp.ones((64, 64)))
    found = run.summary()
  assert found["compile"] > 0
  assert found["evaluation"] > 0
  parts = math.fsum(found[name] for name in (*monitor.SPENT, "steps"))
  assert parts == pytest.approx(found["seconds"])


def test_the_line_says_which_tasks_have_no_labels():
  speed = {"images_per_second": 123.4, "waiting_for_data": 0.05, "memory_gb": 1.25}
  line = monitor.describe(("va", "au"), VALUES, speed)
  assert line == "loss 1.500  va 0.500 x0.25  au unlabelled  123 img/s  data 5%  1.2 GB"


def test_the_line_has_what_is_known_of_the_arithmetic():
  speed = {"images_per_second": 5.0, "waiting_for_data": 0.0, "memory_gb": 1.0}
  line = monitor.describe((), VALUES, speed | {"teraflops": 0.1234, "mfu": 0.42})
  assert line == "loss 1.500  5 img/s  0.123 TFLOP/s  MFU 42%  data 0%  1.0 GB"


# Weights & Biases.


@pytest.fixture
def wandb(monkeypatch):
  """The real W&B, offline: it writes what it would send into the run's folder."""
  module = pytest.importorskip("wandb", reason='W&B is an extra: pip install "affjax[wandb]"')
  monkeypatch.setenv("WANDB_MODE", "offline")
  yield module
  with contextlib.suppress(ConnectionError):  # of a test that ends W&B's process
    module.teardown()


def records(folder):
  """What W&B has stored of each start, in their order: lists of its records."""
  import wandb
  from wandb.proto.wandb_internal_pb2 import Record

  wandb.teardown()  # its process has written all of it once it has ended
  starts = []
  for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda p: p.stat().st_ctime):
    data, found, whole = path.read_bytes(), [], b""
    start, block = 7, 2**15  # LevelDB's log: blocks of parts of records, each behind 7 bytes
    while start < len(data):
      if block - start % block < 7:
        start += block - start % block
      length, part = struct.unpack("<HB", data[start + 4 : start + 7])
      whole += data[start + 7 : start + 7 + length]
      start += 7 + length
      if part in (1, 4):  # a whole record, or its last part
        found.append(Record.FromString(whole))
        whole = b""
    starts.append(found)
  return starts


def items(update):
  """Numbers of a record of W&B: name -> value, without those of its own."""
  named = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in update}
  return {name: value for name, value in named.items() if not name.startswith("_")}


def history(start):
  return [items(r.history.item) for r in start if r.WhichOneof("record_type") == "history"]


def send(folder, *, start=0, project="tests", result=None, facts=None, lines=()):
  """A start of a run that writes lines: step, kind, values."""
  sent = monitor.Wandb(project, folder)
  with sent.open(facts or {}):
    with watch(folder, start=start, wandb=sent) as run:
      for line in lines:
        run.write(*line)
    sent.result(result or {})


def test_wandb_gets_what_the_log_gets(tmp_path, wandb, capsys):
  lines = [
    (10, "train", {"loss": 1.5, "loss/va": math.nan}),
    (10, "validation", {"va/ccc": 0.25}),
    (20, "train", {"loss": 0.5, "loss/va": 0.125}),
  ]
  result = {"scores": {"test": {"p_mtl": 1.0}}, "floors": {"test": {"p_mtl": 0.5}}}
  facts = {"labels": {"au": ["AU1"]}, "start": {"git": "0123abc+"}}
  send(tmp_path, lines=lines, result=result, facts=facts)
  (start,) = records(tmp_path)
  expected = [
    {"step": step} | {f"{kind}/{name}": value for name, value in values.items()}
    for step, kind, values in lines
  ]
  text = lambda entries: json.dumps(entries, sort_keys=True)  # NaN is not equal to itself
  assert text(history(start)) == text(expected)
  (run,) = [r.run for r in start if r.WhichOneof("record_type") == "run"]
  assert (run.project, run.display_name) == ("tests", str(tmp_path))
  config = {item.key: json.loads(item.value_json) for item in run.config.update}
  assert config.items() >= facts.items()
  summary = [r.summary for r in start if r.WhichOneof("record_type") == "summary"]
  assert {"best": result}.items() <= {
    k: v for s in summary for k, v in items(s.update).items()
  }.items()
  assert [r.exit.exit_code for r in start if r.WhichOneof("record_type") == "exit"] == [0]
  (axis,) = [r.metric for r in start if r.WhichOneof("record_type") == "metric"]
  assert (axis.glob_name, axis.step_metric) == ("*", "step")
  assert "offline" in capsys.readouterr().out


def test_a_continued_run_is_the_same_run_at_wandb_and_its_steps_never_go_back(tmp_path, wandb):
  line = lambda step: (step, "train", {"loss": 1.0 / step})
  send(tmp_path, lines=[line(5), line(10), line(15)], facts={"log_every": 5})
  scored = (10, "validation", {"va/ccc": 0.5})
  send(tmp_path, start=10, lines=[line(15), (15, *scored[1:]), line(20)], facts={"log_every": 1})
  first, second = records(tmp_path)
  assert [entry["step"] for entry in history(first)] == [5, 10, 15]
  assert [(e["step"], "validation/va/ccc" in e) for e in history(second)] == [
    (15, True),
    (20, False),
  ]
  ids = {r.run.run_id for r in (*first, *second) if r.WhichOneof("record_type") == "run"}
  assert ids == {json.loads((tmp_path / "wandb.json").read_text())["id"]}


def test_wandb_gets_what_was_logged_without_it_at_the_next_start(tmp_path, wandb):
  send(tmp_path, project=None, lines=[(5, "train", {"loss": 1.0}), (10, "train", {"loss": 0.5})])
  assert not records(tmp_path)
  send(tmp_path, start=10, lines=[(15, "train", {"loss": 0.25})])
  (start,) = records(tmp_path)
  assert history(start) == [
    {"step": 5, "train/loss": 1.0},
    {"step": 10, "train/loss": 0.5},
    {"step": 15, "train/loss": 0.25},
  ]


def test_a_run_goes_on_where_wandb_fails(tmp_path, wandb, capfd):
  sent = monitor.Wandb("tests", tmp_path)
  with sent.open({}), watch(tmp_path, wandb=sent) as run:
    run.write(5, "train", {"loss": 1.0})
    (tmp_path / "wandb.partial").mkdir()  # the note of what was sent cannot be written
    for step in (10, 15):
      run.write(step, "train", {"loss": 1.0})
    sent.result({})
  assert [entry["step"] for entry in log(tmp_path)] == [5, 10, 15]
  warnings = [line for line in capfd.readouterr().err.splitlines() if "warning" in line]
  assert len(warnings) == 1
  assert "W&B" in warnings[0]
  assert "Is a directory" in warnings[0]


def test_a_run_goes_on_where_wandbs_own_process_ends(tmp_path, wandb, capfd):
  psutil = pytest.importorskip("psutil")
  sent = monitor.Wandb("tests", tmp_path)
  with sent.open({}), watch(tmp_path, wandb=sent) as run:
    run.write(5, "train", {"loss": 1.0})
    for process in psutil.Process().children(recursive=True):
      if process.name() == "wandb-core":
        process.kill()
        process.wait()
    for step in range(10, 30, 5):
      run.write(step, "train", {"loss": 1.0})
      time.sleep(0.2)  # until the connection is known to be lost
  assert [entry["step"] for entry in log(tmp_path)] == [5, 10, 15, 20, 25]
  assert capfd.readouterr().err.count("warning: W&B") == 1


def test_a_run_starts_where_wandb_cannot_be_reached(tmp_path, wandb, monkeypatch, capfd):
  monkeypatch.setenv("WANDB_MODE", "online")
  monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # where nobody listens
  monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
  monkeypatch.setenv("WANDB_INIT_TIMEOUT", "3")
  send(tmp_path, lines=[(5, "train", {"loss": 1.0})])
  assert [entry["step"] for entry in log(tmp_path)] == [5]
  assert capfd.readouterr().err.count("warning: W&B") == 1


@pytest.mark.parametrize("failure", ["key", "name"])
def test_what_wandb_refuses_is_said_before_the_run(tmp_path, wandb, monkeypatch, failure):
  if failure == "key":
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # where keys of `wandb login` are
  project = "a/b" if failure == "name" else "tests"
  with pytest.raises(ValueError, match="leave config.wandb out") as e:
    send(tmp_path, project=project)
  assert "\n" not in str(e.value)
  assert not (tmp_path / "metrics.jsonl").exists()


def test_wandb_that_is_not_installed_is_said_at_once(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(ValueError, match=r"config.wandb=tests: .*affjax\[wandb\]"):
    monitor.Wandb("tests", tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"id": "a"}', '{"id": "a", "step": "b", "kinds": []}'])
def test_a_note_of_what_was_sent_that_is_none_is_refused(tmp_path, wandb, text):
  (tmp_path / "wandb.json").write_text(text)
  with pytest.raises(ValueError, match="wandb.json"):
    send(tmp_path)


def test_a_run_without_a_project_has_nothing_of_wandb(tmp_path):
  send(tmp_path, project=None, lines=[(5, "train", {"loss": 1.0})], result={"scores": {}})
  assert not list(tmp_path.glob("wandb*"))


@pytest.mark.slow
def test_a_run_sends_its_scores_and_where_it_comes_from_to_wandb(tiny_faces, tmp_path, wandb):
  where = tmp_path / "run"
  result = train.run(debug_config(wandb="tests", steps=10), where, tiny_faces)
  (start,) = records(where)
  assert history(start) == [
    {"step": e.pop("step")} | {f"{e['kind']}/{k}": v for k, v in e.items() if k != "kind"}
    for e in log(where)
  ]
  (run,) = [r.run for r in start if r.WhichOneof("record_type") == "run"]
  config = {item.key: json.loads(item.value_json) for item in run.config.update}
  assert config["start"] == json.loads((where / "starts.jsonl").read_text())
  summary = [r.summary for r in start if r.WhichOneof("record_type") == "summary"]
  assert {"best": result} in [items(s.update) for s in summary]
