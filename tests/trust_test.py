"""Runs that something happens to: numbers that are not finite, full disks, signals, other runs."""

import json
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import debug_config, launch, remount

from affjax import checkpoints, finite, monitor, stopping, train, workdir
from affjax.data import pipeline, records

ROOT = Path(__file__).parent.parent
# One step a line, two between saves.
OFTEN = ("--config.log_every=1", "--config.checkpoint.every=2")


def start(where, data_dir, *arguments, **options):
  """A run in another process that saves often."""
  return launch(where, data_dir, *OFTEN, *arguments, **options)


def log(where):
  lines = [json.loads(line) for line in (where / monitor.LOG).read_text().splitlines()]
  return [
    {k: v for k, v in e.items() if k not in monitor.SPEED} for e in lines if e["kind"] != "time"
  ]


def sealed(where):
  return sorted(int(path.parent.name) for path in (where / "checkpoints").glob("*/manifest.json"))


# Numbers that are not finite.


@pytest.fixture
def poisoned(tiny_faces, tmp_path):
  """Data of which one training row has a label that is no number; and that row."""
  data_dir = shutil.copytree(tiny_faces, tmp_path / "data")
  build = records.builder("synthetic_faces", "tiny", str(data_dir))
  seen = records.labels(build, "train", debug_config()["labels"])
  row = int(np.flatnonzero(seen[1]["va"].all(1))[40])
  table = dict(records.label_table(build, "train"))
  table["labels/va"][row] = np.nan
  np.savez(Path(build.data_dir) / records.TABLE.format("train"), **table)
  return str(data_dir), row, table["key"][row].decode()


def first_step(row, config):
  """The number of the update that sees a row first."""
  order = pipeline.order(96, config["seed"], config["batch_size"])
  return next(step for step in range(1, 20) if row in order[step - 1])


def test_an_update_that_is_not_finite_stops_the_run_or_is_skipped_and_counted(
  poisoned, tmp_path, capsys
):
  data_dir, row, key = poisoned
  where = tmp_path / "run"
  config = debug_config(data__view__masks="none", checkpoint__every=1, log_every=10)
  step = first_step(row, config)
  with pytest.raises(FloatingPointError) as stopped:
    train.run(config, where, data_dir)
  said = str(stopped.value)
  assert f"update {step} is not finite" in said
  assert "loss/va nan" in said
  assert "loss/au" not in said
  assert f"labels that are not finite: rows {row} ({key})" in said
  assert "config.nonfinite=skip" in said
  assert sealed(where)[-1:] == [step - 1][: step > 1]  # and not the step itself
  # The same run goes on, without such updates.
  found = train.run(config | {"nonfinite": "skip"}, where, data_dir)
  assert found["skipped_updates"][0] == step
  assert len(found["skipped_updates"]) in (3, 4)  # once an epoch
  saved = json.loads((where / "scores.json").read_text())
  assert saved["skipped_updates"] == found["skipped_updates"]
  said = capsys.readouterr().out
  assert f"skipped: update {step} is not finite" in said
  assert f"{len(found['skipped_updates'])} updates were not finite" in said
  state = checkpoints.read(where / "checkpoints" / "20", ("params", "ema", "opt_state"))
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


def test_parameters_that_grow_without_end_stop_the_run(tiny_faces, tmp_path):
  config = debug_config(
    optimizer__learning_rate=1e30, optimizer__clip_norm=0.0, data__placement="stream"
  )
  with pytest.raises(FloatingPointError, match="is not finite .*rows .* and 8 more"):
    train.run(config, tmp_path / "run", tiny_faces)


def test_another_choice_is_refused_before_the_run(tiny_faces, tmp_path):
  with pytest.raises(ValueError, match="config.nonfinite='ignore': use one of stop, skip"):
    train.run(debug_config(nonfinite="ignore"), tmp_path / "run", tiny_faces)
  assert not (tmp_path / "run").exists()
  assert finite.choice({}) == "stop"  # in the configs of earlier runs


# Memory and disks that are full.


@pytest.mark.slow
def test_a_step_that_does_not_fit_says_what_would_help(tiny_faces, tmp_path):
  limit = 12 * 2**30  # compiling takes several, and ends the process where it gets none
  process = start(
    tmp_path / "run", tiny_faces, "--config.batch_size=8192",
    preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
  )  # fmt: skip
  said = process.communicate()[0]
  assert process.returncode == 1, said
  *_, last = said.strip().splitlines()
  assert last.startswith("error: out of memory in a training step"), said
  assert "config.batch_size" in last
  assert "config.accumulate" in last
  assert "Traceback" not in said


@pytest.mark.slow
def test_a_full_disk_stops_the_run_in_one_line_and_with_room_it_goes_on(tiny_faces, disk):
  folder = disk("size=14m")  # for one checkpoint and a half
  process = start(folder / "run", tiny_faces)
  said = process.communicate()[0]
  assert process.returncode == 1, said
  *_, last = said.strip().splitlines()
  assert last.startswith("error: checkpoint of step 4 could not be saved"), said
  assert "No space left on device; step 2 is on disk" in last
  assert "Traceback" not in said
  remount(folder, "ro")
  process = start(folder / "run", tiny_faces)
  said = process.communicate()[0]
  assert process.returncode == 1, said
  assert said.strip().splitlines()[-1].startswith("error: "), said
  assert "Read-only file system" in said
  assert "Traceback" not in said
  remount(folder, "rw,size=100m")
  process = start(folder / "run", tiny_faces)
  said = process.communicate()[0]
  assert process.returncode == 0, said
  assert "continues from step 2" in said
  steps = [entry["step"] for entry in log(folder / "run") if entry["kind"] == "train"]
  assert steps == list(range(1, 21))


def test_a_disk_without_room_for_a_checkpoint_is_said_before_anything_is_compiled(tiny_faces, disk):
  folder = disk("size=14m")
  (folder / "ballast").write_bytes(bytes(9_000_000))
  with pytest.raises(ValueError, match="a checkpoint takes about 9 MB and .* has .* MB free"):
    train.run(debug_config(), folder / "run", tiny_faces)


# Signals, and other runs.


def test_a_folder_that_a_run_is_in_refuses_another(tiny_faces, tmp_path):
  where = tmp_path / "run"
  holder = subprocess.Popen(
    [sys.executable, "-c", "import sys, time, pathlib; from affjax import workdir\n"
     "with workdir.claim(pathlib.Path(sys.argv[1])): print('has it', flush=True); time.sleep(99)",
     str(where)], cwd=ROOT, stdout=subprocess.PIPE, text=True,
  )  # fmt: skip
  assert holder.stdout.readline() == "has it\n"
  with pytest.raises(ValueError, match=f"in use by process {holder.pid} on .*--workdir"):
    train.run(debug_config(), where, tiny_faces)
  assert not (where / "config.json").exists()
  holder.kill()
  holder.wait()
  with workdir.claim(where):  # whatever ended the run
    pass


BUSY = """
import hashlib, io, sys, time
from affjax import stopping
with stopping.Stop(owns_process=True) as stop:
  stop.holds = sys.argv[1] == "holds"
  stop.saved = lambda: time.sleep(0.3)
  print("busy", flush=True)
  if sys.argv[1] == "compiler":
    sys.stdout = io.StringIO()  # as while data are built
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000_000)  # C, for minutes: no handler can run
  while stop.signal is None:
    time.sleep(0.01)
  stop.holds = False
  print("saved", flush=True)
  stopping.say(stop.signal, "training")
  sys.exit(stopping.code(stop.signal))
"""


@pytest.mark.parametrize("number", stopping.SIGNALS)
@pytest.mark.parametrize("doing", ["compiler", "holds"])
def test_a_signal_ends_the_process_at_once_or_once_it_has_saved(doing, number):
  process = subprocess.Popen(
    [sys.executable, "-c", BUSY, doing], cwd=ROOT, stdout=subprocess.PIPE, text=True
  )
  assert process.stdout.readline() == "busy\n"
  begin = time.monotonic()
  process.send_signal(number)
  said = process.communicate(timeout=20)[0]
  assert process.returncode == 128 + number
  assert ("saved" in said) == (doing == "holds")
  assert f"stopped by {number.name}" in said
  assert time.monotonic() - begin < 10


def test_a_second_signal_does_not_wait():
  process = subprocess.Popen(
    [sys.executable, "-c", BUSY.replace("sleep(0.3)", "sleep(99)"), "compiler"],
    cwd=ROOT, stdout=subprocess.PIPE, text=True,
  )  # fmt: skip
  assert process.stdout.readline() == "busy\n"
  process.send_signal(signal.SIGTERM)
  time.sleep(0.5)
  assert process.poll() is None  # it waits for the save
  process.send_signal(signal.SIGTERM)
  assert process.wait(10) == 128 + signal.SIGTERM


def test_in_a_notebook_ctrl_c_is_an_exception_where_nothing_is_lost():
  with stopping.Stop() as stop:
    with pytest.raises(KeyboardInterrupt):
      signal.raise_signal(signal.SIGINT)
    stop.holds = True
    signal.raise_signal(signal.SIGINT)
    assert stop.asked(0)
    with pytest.raises(KeyboardInterrupt):
      signal.raise_signal(signal.SIGINT)  # once more: at once


@pytest.mark.slow
def test_a_signal_to_one_process_of_a_cluster_has_all_save_the_same_step_and_leave(
  tiny_faces, tmp_path
):
  where = tmp_path / "run"
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  cluster = (f"--coordinator=localhost:{port}", "--processes=2", "--config.steps=2000")
  both = [
    start(where, tiny_faces, *cluster, f"--process={i}", "--config.data.placement=stream")
    for i in range(2)
  ]
  for line in both[0].stdout:
    if line.startswith("step 3/"):
      break
  both[1].send_signal(signal.SIGINT)  # which it turns into the SIGTERM that JAX hears
  said = [process.communicate(timeout=120)[0] for process in both]
  codes = [process.returncode for process in both]
  assert codes == [stopping.code(n) for n in (signal.SIGTERM, signal.SIGINT)], said
  assert "the same command continues" in said[0]
  steps = [entry["step"] for entry in log(where) if entry["kind"] == "train"]
  assert sealed(where)[-1] == steps[-1]
