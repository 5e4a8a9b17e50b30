"""Windows of sound around frames, of files written here: clicks are where they should be."""

import csv
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from affwild_tree import prepared, write_folder

from affjax.data import manifest, records, sound
from tfds_builders.aff_wild2 import videos

pytest.importorskip("av")
from videos_test import clicks, write

FPS, FRAMES, CLICK = 25, 75, 1.5
# Video of the records -> its file. Frames 76 and 80 are beyond the last.
FILES = {
  "talk_left": "talk",
  "talk_right": "talk",
  "late": "late",
  "silent": "silent",
  "own_left": "own_left",
  "gone": None,
}
NUMBERS = [1, 2, 30, 37, 38, 39, 50, 75, 76, 80]


def write_set(root, frames=NUMBERS, names=tuple(FILES)):
  """An image folder with rows of every video, and one row of none."""
  root.mkdir(exist_ok=True)
  source = write_folder(root / "images", "", ["x.jpg"])
  with (source / "labels.csv").open("w", newline="") as f:
    lines = csv.writer(f)
    lines.writerow(["path", "video", "frame", "split", "valence", "arousal"])
    for i, (video, frame) in enumerate((v, k) for v in names for k in frames):
      lines.writerow(["x.jpg", video, frame, ("train", "validation")[i % 2], 0.1, 0.2])
    lines.writerow(["x.jpg", "", "", "train", 0.1, 0.2])
  build, _ = prepared("image_folder", source, root / "data", "filmed")
  return build


def write_videos(folder, clips=("talk", "late", "silent", "own_left", "own")):
  """The files: `late` begins to sound a second late, `silent` never, `own` is of no record."""
  heard = {"samples": clicks([CLICK], 3)}
  for name in clips:
    kind = {} if name == "silent" else heard | ({"start": 0.98} if name == "late" else {})
    write(folder / ("batch1" if name == "late" else "batch2") / f"{name}.mp4", FRAMES, FPS, **kind)
  return folder


@pytest.fixture(scope="module")
def filmed(tmp_path_factory):
  """A prepared set with its sound, and the folder of the videos."""
  root = tmp_path_factory.mktemp("filmed")
  build, source = write_set(root), write_videos(root / "videos")
  sound.extract(build, source)
  return build, source


@pytest.fixture
def fresh(tmp_path, filmed):
  """The same without its sound: a set of the test's own."""
  return write_set(tmp_path), filmed[1]


def written(build):
  """Name -> when it was written, of all that is there."""
  return {path.name: path.stat().st_mtime_ns for path in beside(build).glob("*.npy")}


def beside(build):
  return sound.Path(build.data_dir) / sound.FOLDER


# Windows.


def heard(windows, rate=videos.RATE):
  """[n] seconds from the start of each window to the first loud sample, NaN where there is none."""
  loud = np.abs(windows) > 0.15
  return np.where(loud.any(1), loud.argmax(1) / rate, np.nan)


@pytest.mark.parametrize("seconds", [0.1, 0.5, 2])
@pytest.mark.parametrize("video", ["talk_left", "talk_right"])
def test_a_click_is_in_the_windows_of_exactly_the_frames_around_it(filmed, video, seconds):
  frame = np.arange(1, FRAMES + 1)
  times = (frame - 1) / FPS
  opened = sound.Sound(filmed[0].data_dir)
  for causal in (False, True):
    windows, present = opened.windows([video] * FRAMES, frame, seconds, causal)
    assert windows.shape == (FRAMES, round(seconds * opened.rate))
    assert windows.dtype == np.float32
    assert present.all()
    expected = CLICK - times + (seconds if causal else seconds / 2)
    inside = (expected > 0.002) & (expected < seconds - 0.002)
    outside = (expected < -0.002) | (expected > seconds + 0.002)
    assert inside.sum() > 1
    found = heard(windows)
    np.testing.assert_allclose(found[inside], expected[inside], atol=0.002)
    assert np.isnan(found[outside]).all()


def test_windows_are_the_samples_of_the_video_and_zeros_beyond_them(filmed):
  build, source = filmed
  whole = videos.sound(source / "batch2/talk.mp4").astype(np.float32) / 32768
  edge = np.zeros(160_000)
  padded = np.concatenate([edge, whole, edge])
  frame = np.array([1, 75, 40, 2])
  middle = len(edge) + np.rint((frame - 1) / FPS * videos.RATE).astype(int)
  opened = sound.Sound(build.data_dir)
  for length in (1, 2, 1601, 48_000, 150_000):
    windows, _ = opened.windows(["talk_left"] * 4, frame, length / videos.RATE)
    expected = [padded[m - length // 2 : m - length // 2 + length] for m in middle]
    np.testing.assert_array_equal(windows, expected)
    windows, _ = opened.windows(["talk_left"] * 4, frame, length / videos.RATE, causal=True)
    np.testing.assert_array_equal(windows, [padded[m - length + 1 : m + 1] for m in middle])
  assert np.abs(whole).max() <= 1


def test_rows_of_a_batch_do_not_depend_on_each_other(filmed):
  build, _ = filmed
  opened = sound.Sound(build.data_dir)
  table = records.label_table(build, "train")
  video, frame = table["video"], table["frame"]
  known = (video == b"") | (frame > 0)
  video, frame = video[known], frame[known]
  order = np.random.default_rng(0).permutation(len(video))
  windows, present = opened.windows(video[order], frame[order], 0.3)
  for i, row in enumerate(order):
    alone, there = opened.windows(video[row : row + 1], frame[row : row + 1], 0.3)
    np.testing.assert_array_equal(windows[i], alone[0])
    assert present[i] == there[0]
  again = pickle.loads(pickle.dumps(opened))  # as workers get it
  np.testing.assert_array_equal(again.windows(video[order], frame[order], 0.3)[0], windows)


def test_what_has_no_sound_is_zeros_and_not_present(filmed):
  opened = sound.Sound(filmed[0].data_dir)
  names = ["silent", "gone", "", "talk_left", "own_left", "late"]
  windows, present = opened.windows(names, [38, 38, -1, 38, 38, 38], 0.5)
  assert present.tolist() == [False, False, False, True, True, True]
  assert windows.any(1).tolist() == [False, False, False, True, True, False]
  late, _ = opened.windows(["late"], [1 + round((CLICK + 0.98) * FPS)], 0.5)
  np.testing.assert_allclose(heard(late), 0.25, atol=0.003)


def test_times_go_on_at_the_mean_rate_beyond_the_last_frame(tmp_path):
  times = np.cumsum([0, *np.random.default_rng(0).uniform(0.02, 0.06, 49)])
  click = times[-1] + 10 * times[-1] / 49
  write(tmp_path / "videos/v.mkv", times=times, samples=clicks([click], 4), sound="pcm_s16le")
  build = write_set(tmp_path, [1, 50, 51, 60], ["v"])
  facts = sound.extract(build, tmp_path / "videos")
  assert facts["beyond"] == {"v": 2}
  opened = sound.Sound(build.data_dir)
  np.testing.assert_allclose(heard(opened.windows(["v"], [60], 0.5)[0]), 0.25, atol=0.003)
  for k in (1, 13, 50):
    windows, _ = opened.windows(["v"], [k], 2 * (click - times[k - 1]) + 0.5)
    np.testing.assert_allclose(heard(windows), 2 * (click - times[k - 1]) + 0.25, atol=0.003)


def test_what_cannot_be_asked_for_is_said(filmed):
  opened = sound.Sound(filmed[0].data_dir)
  with pytest.raises(ValueError, match=r"affjax_sound\.json: video 'who' is not of this data set"):
    opened.windows([b"who"], [1], 1)
  with pytest.raises(ValueError, match="video 'talk', frame 0: frames are numbered from 1"):
    opened.windows(["talk_left"], [0], 1)
  with pytest.raises(ValueError, match=r"windows of 1e-06 seconds: use at least 6\.3e-05"):
    opened.windows(["talk_left"], [1], 1e-6)


# Extraction.


def test_what_is_there_is_described_with_hashes(filmed):
  build, source = filmed
  facts = sound.read(build.data_dir)
  assert facts["rate"] == 16_000
  assert facts["videos"] == FILES
  assert sorted(facts["media"]) == ["late", "own_left", "silent", "talk"]
  assert facts["beyond"] == {name: 2 for name, stem in FILES.items() if stem}
  for stem, media in facts["media"].items():
    (path,) = source.rglob(f"{stem}.mp4")
    assert media["bytes"] == path.stat().st_size
    assert media["frames"] == FRAMES
    assert media["fps"] == pytest.approx(FPS)
    assert media["samples"] == len(videos.sound(path))
    assert set(media["files"]) == {f"{stem}.npy", f"{stem}.times.npy"}
    for name, of in media["files"].items():
      content = (beside(build) / name).read_bytes()
      assert of == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
  assert {path.name for path in beside(build).iterdir()} == {*written(build), ".lock"}


def test_the_same_command_does_nothing_again_and_new_files_are_taken_in(fresh, tmp_path):
  build, source = fresh
  some = tmp_path / "some"
  some.mkdir()
  for name in ("talk", "silent"):
    (some / f"{name}.mp4").write_bytes((source / f"batch2/{name}.mp4").read_bytes())
  first = sound.extract(build, some)
  assert first["videos"] == FILES | {"late": None, "own_left": None}
  before = written(build)
  assert sound.extract(build, some) == first
  assert written(build) == before
  both = sound.extract(build, source)  # where `talk` and `silent` are too
  assert both["videos"] == FILES
  assert before.items() <= written(build).items()
  assert sound.extract(build, some) == both  # what was made stays, wherever its file is now


def test_another_rate_or_another_file_is_made_anew(fresh, tmp_path):
  build, _ = fresh
  some = write_videos(tmp_path / "some", ["talk", "silent"])
  sound.extract(build, some)
  before = written(build)
  write(some / "batch2/talk.mp4", 20, FPS)
  facts = sound.extract(build, some)
  assert facts["media"]["talk"]["frames"] == 20
  after = written(build)
  assert {name for name in after if after[name] != before[name]} == {"talk.npy", "talk.times.npy"}
  facts = sound.extract(build, some, 8000)
  assert facts["rate"] == sound.Sound(build.data_dir).rate == 8000
  assert facts["media"]["talk"]["samples"] == len(videos.sound(some / "batch2/talk.mp4", 8000))
  assert not after.items() & written(build).items()


def test_broken_files_are_named_and_the_others_are_kept(fresh, tmp_path):
  build, source = fresh
  some = write_videos(tmp_path / "some", ["talk"])
  sound.extract(build, some)
  whole = (source / "batch1/late.mp4").read_bytes()
  (some / "batch1").mkdir()
  (some / "batch1/late.mp4").write_bytes(whole[:1000])
  (beside(build) / "talk.4711").write_bytes(b"left by a killed process")
  with pytest.raises(ValueError, match=r"^1 of 1 videos: .*late\.mp4: not a video that can") as e:
    sound.extract(build, some)
  assert "\n" not in str(e.value)
  assert set(written(build)) == {"talk.npy", "talk.times.npy"}
  with pytest.raises(ValueError, match=r"has no sound: run `python -m affjax\.data\.sound NAME"):
    sound.Sound(build.data_dir)
  before = written(build)
  (some / "batch1/late.mp4").write_bytes(whole)
  sound.extract(build, some)
  assert before.items() < written(build).items()
  left = {path.name for path in beside(build).iterdir()} - set(written(build))
  assert left == {".lock"}


@pytest.mark.slow
def test_a_killed_extraction_goes_on_where_it_was(fresh, tmp_path):
  build, _ = fresh
  source = tmp_path / "source"
  for name in ("talk", "late", "silent", "own_left"):
    write(source / f"{name}.mkv", 400 if name == "talk" else 4000, 25, samples=clicks([1], 16))
  command = [
    sys.executable, "-m", "affjax.data.sound", "image_folder", "--config=filmed",
    f"--data_dir={build.data_dir_root}", f"--source={source}",
  ]  # fmt: skip
  killed = subprocess.Popen(command, stderr=subprocess.DEVNULL)
  partial = beside(build) / "partial.json"
  while killed.poll() is None:
    if partial.is_file() and json.loads(partial.read_bytes())["media"]:
      killed.send_signal(signal.SIGKILL)
      break
    time.sleep(0.002)
  assert killed.wait() == -signal.SIGKILL
  done = json.loads(partial.read_bytes())["media"]
  assert 0 < len(done) < 4
  before = written(build)
  finished = subprocess.run(command, capture_output=True, text=True)
  assert finished.returncode == 0, finished.stderr
  assert sound.read(build.data_dir)["media"].items() >= done.items()
  for media in done.values():
    for name in media["files"]:
      assert written(build)[name] == before[name]
  assert {path.name for path in beside(build).iterdir()} == {*written(build), ".lock"}


def test_the_command_says_what_there_is_and_what_is_not(fresh, capsys):
  build, source = fresh
  arguments = ["image_folder", "--config=filmed", f"--data_dir={build.data_dir_root}"]
  sound.main([*arguments, f"--source={source}"])
  said = capsys.readouterr().out.splitlines()
  assert said[0].startswith("4 files of 6 videos: 0.00 hours of sound at 16000 Hz, 0.3 MB in ")
  assert said[1:] == [
    "1 files without sound: silent",
    "1 videos without a file: gone",
    "10 rows of 5 videos are beyond the last frame that can be decoded: their times go on at the"
    " mean frame rate",
  ]


def test_what_is_wrong_is_one_line(fresh, tmp_path, tiny_ferplus):
  build, source = fresh
  mine = ["image_folder", "--config=filmed", f"--data_dir={build.data_dir_root}"]
  (tmp_path / "empty").mkdir()
  zero = write_set(tmp_path / "zero", [0], ["talk"])
  photos = write_set(tmp_path / "photos", [1], [""])
  cases = {
    "empty: no file \\(.mp4, .*'gone'": [*mine, f"--source={tmp_path}/empty"],
    "no such folder": [*mine, f"--source={tmp_path}/nowhere"],
    "--rate=12: use 1000 to 192000": [*mine, f"--source={source}", "--rate=12"],
    "have no video and no frame": [
      "ferplus", f"--data_dir={tiny_ferplus.data_dir_root}", f"--source={source}"
    ],
    "its records name no video": [
      *mine[:2], f"--data_dir={photos.data_dir_root}", f"--source={source}"
    ],
    "is not in .*affjax.data.prepare": [*mine[:2], f"--data_dir={tmp_path}", f"--source={source}"],
    "video 'talk' has a frame 0; they are numbered from 1": [
      *mine[:2], f"--data_dir={zero.data_dir_root}", f"--source={source}"
    ],
  }  # fmt: skip
  for message, arguments in cases.items():
    with pytest.raises(SystemExit, match=f"^error: .*{message}") as e:
      sound.main(arguments)
    assert "\n" not in str(e.value)
  assert not written(build)


def test_damaged_files_are_named(fresh):
  build, source = fresh
  sound.extract(build, source)
  opened = sound.Sound(build.data_dir)
  path = beside(build) / "talk.npy"
  os.truncate(path, path.stat().st_size // 2)
  with pytest.raises(ValueError, match=r"talk\.npy cannot be read .*: delete it and run"):
    opened.windows(["talk_left"], [1], 1)
  sound.extract(build, source)  # sees that it is not whole
  assert opened.windows(["talk_left"], [38], 1)[0].any()
  summary = sound.Path(build.data_dir) / sound.SUMMARY
  for damage in (b"", b"[]", b'{"rate": 16000}', summary.read_bytes().replace(b'"frames"', b'"x"')):
    summary.write_bytes(damage)
    with pytest.raises(ValueError, match=r"affjax_sound\.json cannot be read: delete it and run"):
      sound.Sound(build.data_dir)


def test_verifying_a_set_finds_what_has_rotted_in_its_sound(fresh, capsys):
  build, source = fresh
  sound.extract(build, source)
  assert manifest.verify(build)
  path = beside(build) / "talk.npy"
  content = bytearray(path.read_bytes())
  content[-1] ^= 1
  path.write_bytes(content)
  capsys.readouterr()
  assert not manifest.verify(build)
  assert "affjax_sound/talk.npy  other bytes than were written" in capsys.readouterr().out
