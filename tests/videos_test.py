"""Frames, their times, and sound, of files written here: each frame has its number in pixels."""

import os
import re
import sys
from fractions import Fraction

import cv2
import numpy as np
import pytest

from tfds_builders.aff_wild2 import videos

av = pytest.importorskip("av")

H264 = next((name for name in ("libx264", "libopenh264") if name in av.codecs_available), "mpeg4")
BITS = 10  # of a frame's number, each a block of a picture
NTSC = Fraction(30_000, 1001)
TICK = Fraction(1, 90_000)  # of times that are given one by one, seconds


def draw(number, width, height):
  """A picture of a number: its bits from left to right, the upper half white or black."""
  image = np.full((height, width, 3), 90, np.uint8)
  for bit in range(BITS):
    image[: height // 2, bit * width // BITS : (bit + 1) * width // BITS] = 255 * (
      number >> bit & 1
    )
  return image


def number_in(image):
  """The number that was drawn."""
  height, width, _ = image.shape
  columns = [(2 * bit + 1) * width // (2 * BITS) for bit in range(BITS)]
  return sum(int(image[height // 4, x].mean() > 128) << bit for bit, x in enumerate(columns))


def write(
  path, count=50, fps=25, codec=H264, size=(160, 96), times=None, options=None, turned=None, **heard
):
  """Writes a video of numbered frames, from 1, and perhaps sound; `heard`: see `_mux`."""
  path.parent.mkdir(parents=True, exist_ok=True)
  unit = 1 / Fraction(fps) if times is None else TICK
  stamps = range(count) if times is None else [round(time / TICK) for time in times]
  with av.open(str(path), "w", options=options or {}) as container:
    stream = container.add_stream(codec, rate=fps)
    stream.width, stream.height = size
    stream.pix_fmt = "yuv420p"
    stream.codec_context.time_base = unit
    if turned is not None:
      stream.set_display_rotation(turned)
    listen = _mux(container, **heard) if heard else lambda: None
    for number, stamp in enumerate(stamps, 1):
      frame = av.VideoFrame.from_ndarray(draw(number, *size), "rgb24")
      frame.pts, frame.time_base = stamp, unit
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
    listen()
  return path


def _mux(container, samples, rate=44_100, sound="aac", start=0.0, gap=(0, 0)):
  """Adds a stream; the function that then writes [channels, samples] int16, less those in a gap."""
  layout = {1: "mono", 2: "stereo"}[len(samples)]
  stream = container.add_stream(sound, rate=rate, layout=layout)

  def listen():
    for first in range(0, samples.shape[1], 1024):
      if gap[0] <= first < gap[1]:
        continue
      part = np.ascontiguousarray(samples[:, first : first + 1024].T.reshape(1, -1))
      frame = av.AudioFrame.from_ndarray(part, "s16", layout)
      frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
      frame.pts = first + round(start * rate)
      container.mux(stream.encode(frame))
    container.mux(stream.encode())

  return listen


def clicks(times, seconds, rate=44_100):
  """[1, samples] int16: silence, with a millisecond of noise at each time."""
  samples = np.zeros((1, round(seconds * rate)), np.int16)
  for time in times:
    at = round(time * rate)
    samples[0, at : at + rate // 1000] = 20_000 * (-1) ** np.arange(rate // 1000) // 2 + 10_000
  return samples


def heard(samples, rate=videos.RATE):
  """Seconds at which clicks begin."""
  loud = np.flatnonzero(np.abs(samples.astype(int)) > 4000)
  return loud[np.diff(loud, prepend=-rate) > rate // 20] / rate


def numbers(path, **options):
  return [(k, number_in(image)) for k, _, image in videos.frames(path, **options)]


# Frames.


@pytest.mark.parametrize(
  ("name", "codec", "fps"),
  [
    ("x.mp4", H264, 24),
    ("x.mp4", "mpeg4", 25),
    ("x.mov", H264, 30),
    ("x.mkv", H264, NTSC),
    ("x.avi", "mpeg4", NTSC),
    ("x.avi", H264, 25),  # AVI keeps no times of showing, and these frames are stored out of order
  ],
)
def test_frames_come_in_the_order_of_showing_with_their_times(tmp_path, name, codec, fps):
  path = write(tmp_path / name, 70, fps, codec)
  found = list(videos.frames(path))
  assert [k for k, _, _ in found] == list(range(1, 71))
  assert [number_in(image) for _, _, image in found] == list(range(1, 71))
  # Matroska rounds to milliseconds.
  expected = np.arange(70) / float(fps)
  near = 0.0006 if name == "x.mkv" else 1e-6
  np.testing.assert_allclose([time for _, time, _ in found], expected, atol=near)
  np.testing.assert_array_equal(videos.times(path), [time for _, time, _ in found])
  assert videos.count(path) == 70
  assert videos.rate(path) == pytest.approx(float(fps), rel=1e-3)
  assert {(image.shape, image.dtype.name) for _, _, image in found} == {((96, 160, 3), "uint8")}


def test_times_of_a_variable_rate_are_those_of_the_file(tmp_path):
  steps = np.random.default_rng(0).integers(1, 20, 60) / 100
  times = 5 + np.cumsum(steps)
  path = write(tmp_path / "x.mp4", times=times)
  found = videos.times(path)
  np.testing.assert_allclose(found, times - times[0], atol=float(TICK))
  assert [(time, number_in(image)) for _, time, image in videos.frames(path)] == [
    (time, k) for k, time in enumerate(found, 1)
  ]
  assert videos.rate(path) == pytest.approx(1 / steps[1:].mean(), rel=0.05)


@pytest.mark.parametrize(
  ("stored", "size", "expected"),
  [
    ((160, 96), 48, (80, 48)),
    ((96, 160), 48, (48, 80)),
    ((322, 182), 64, (113, 64)),
    ((160, 96), 192, (320, 192)),
    ((160, 96), None, (160, 96)),
  ],
)
def test_the_shorter_side_is_brought_to_a_size(tmp_path, stored, size, expected):
  path = write(tmp_path / "x.mp4", 5, size=stored)
  found = list(videos.frames(path, size))
  assert {image.shape for *_, image in found} == {(expected[1], expected[0], 3)}
  assert [number_in(image) for *_, image in found] == [1, 2, 3, 4, 5]


def test_pictures_are_averaged_where_they_shrink(tmp_path):
  noise = np.random.default_rng(0).integers(0, 256, (256, 384, 3), np.uint8)
  noise = cv2.GaussianBlur(noise, (0, 0), 0.7)
  path = tmp_path / "x.mkv"
  with av.open(str(path), "w") as container:
    stream = container.add_stream("ffv1", rate=25)
    stream.width, stream.height, stream.pix_fmt = 384, 256, "bgr0"
    container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, "rgb24").reformat(format="bgr0")))
    container.mux(stream.encode())
  ((_, _, whole),) = videos.frames(path)
  np.testing.assert_array_equal(whole, noise)
  ((_, _, small),) = videos.frames(path, 64)
  error = lambda how: np.abs(small - cv2.resize(noise, (96, 64), interpolation=how).astype(int))
  assert error(cv2.INTER_AREA).mean() < 2
  assert error(cv2.INTER_LINEAR).mean() > 10


def test_wanted_frames_are_those_of_all(tmp_path):
  path = write(tmp_path / "x.mp4", 30)
  every = {k: (time, image) for k, time, image in videos.frames(path)}
  found = list(videos.frames(path, wanted={17, 3, 4}))
  assert [k for k, _, _ in found] == [3, 4, 17]
  for k, time, image in found:
    assert time == every[k][0]
    np.testing.assert_array_equal(image, every[k][1])
  assert [k for k, _, _ in videos.frames(path, wanted=range(28, 99))] == [28, 29, 30]
  assert not list(videos.frames(path, wanted=()))


@pytest.mark.parametrize("angle", [90, 180, -90])
def test_a_turned_video_is_shown_as_opencv_shows_it(tmp_path, angle):
  if not hasattr(av.VideoStream, "set_display_rotation"):
    pytest.skip("this PyAV cannot write how a video is turned")
  path = write(tmp_path / "x.mp4", 3, turned=angle)
  _, expected = cv2.VideoCapture(str(path)).read()
  _, _, image = next(videos.frames(path))
  assert image.shape == ((96, 160, 3) if angle == 180 else (160, 96, 3))
  assert np.abs(image.astype(int) - expected[..., ::-1]).mean() < 2
  _, _, small = next(videos.frames(path, 48))
  assert min(small.shape[:2]) == 48


def test_a_title_in_another_encoding_is_no_hindrance(tmp_path):
  path = tmp_path / "x.avi"
  with av.open(str(path), "w") as container:
    container.metadata["title"] = "Cafe au lait"
    stream = container.add_stream("mpeg4", rate=25)
    stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
    container.mux(stream.encode(av.VideoFrame.from_ndarray(draw(1, 160, 96), "rgb24")))
    container.mux(stream.encode())
  written = path.read_bytes()
  assert b"Cafe au lait" in written
  path.write_bytes(written.replace(b"Cafe", b"Caf\xe9"))
  assert numbers(path) == [(1, 1)]


# Damage.


def packets(path):
  """Where each packet of video begins, and its bytes, in a file."""
  with av.open(str(path)) as container:
    return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]


def test_of_a_truncated_file_the_frames_before_the_cut_are_read(tmp_path):
  whole = write(tmp_path / "x.avi", 100, codec="mpeg4")
  at, size = packets(whole)[59]
  cut = tmp_path / "cut.avi"
  cut.write_bytes(whole.read_bytes()[: at + size // 2])
  found = numbers(cut)
  assert len(found) in (59, 60)  # a decoder may make a frame of half a packet
  assert found[:59] == [(k, k) for k in range(1, 60)]
  assert videos.count(cut) == len(found)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
  whole = write(tmp_path / "x.mp4", 50).read_bytes()
  for name, content in {
    "cut.mp4": whole[: len(whole) // 2],  # where frames lie is said at its end
    "empty.avi": b"",
    "text.mkv": b"not a video\n" * 100,
  }.items():
    path = tmp_path / name
    path.write_bytes(content)
    for read in (videos.count, videos.times, videos.rate, videos.sound):
      with pytest.raises(ValueError, match=f"{name}: not a video that can be read") as e:
        read(path)
      assert "\n" not in str(e.value)
  with pytest.raises(ValueError, match=r"no\.mp4: not a video .*No such file"):
    videos.count(tmp_path / "no.mp4")


def test_damaged_packets_are_skipped_and_said(tmp_path, capfd):
  path = write(tmp_path / "x.mp4", 100)
  places = packets(path)
  assert videos.count(path) == 100
  assert capfd.readouterr().err == ""
  content = bytearray(path.read_bytes())
  lost = range(60, 63)
  for packet in lost:
    at, size = places[packet]
    content[at : at + size] = b"\xff" * size
  path.write_bytes(content)
  assert numbers(path, wanted=[2, 5]) == [(2, 2), (5, 5)]
  assert capfd.readouterr().err == ""  # the damage was not reached
  found = numbers(path)
  warning = capfd.readouterr().err
  assert re.fullmatch(
    rf"warning: {re.escape(str(path))}: \d+ damaged packets of video skipped; .*\n", warning
  )
  assert [k for k, _ in found] == list(range(1, len(found) + 1))
  assert 100 - 2 * len(lost) <= len(found) < 100
  assert videos.count(path) == len(found)
  for at, size in places:
    content[at : at + size] = b"\xff" * size
  path.write_bytes(content)
  with pytest.raises(ValueError, match=r"x\.mp4: no video can be decoded"):
    videos.count(path)


def test_a_playlist_is_not_followed(tmp_path):
  write(tmp_path / "secret.avi", 5, codec="mpeg4")
  (tmp_path / "x.avi").write_text("ffconcat version 1.0\nfile secret.avi\n")
  with av.open(str(tmp_path / "x.avi")) as container:
    assert container.streams.video  # which FFmpeg would
  with pytest.raises(ValueError, match=r"x\.avi: not a video that can be read"):
    videos.count(tmp_path / "x.avi")


def test_a_picture_of_absurd_size_is_refused(tmp_path, monkeypatch):
  path = write(tmp_path / "x.mp4", 5)
  monkeypatch.setattr(videos.images, "PIXELS", 160 * 96 // 4)
  with pytest.raises(ValueError, match="no video can be decoded"):
    videos.count(path)


def test_an_unknown_codec_is_said(tmp_path):
  for kind, code in (("video", b"FMP4"), ("audio", b"\x55\x00\x01\x00")):
    path = write(
      tmp_path / f"{kind}.avi", 5, codec="mpeg4", samples=clicks([], 1), sound="libmp3lame"
    )
    content = path.read_bytes()
    assert code in content
    path.write_bytes(content.replace(code, b"????" if kind == "video" else b"\x77\x77\x01\x00"))
    with pytest.raises(ValueError, match=rf"{kind}\.avi: no {kind} can be decoded"):
      videos.sound(path)


def test_sound_alone_is_no_video(tmp_path):
  path = tmp_path / "x.mp4"
  with av.open(str(path), "w") as container:
    _mux(container, clicks([], 1))()
  with pytest.raises(ValueError, match=r"x\.mp4: there is no video in it"):
    videos.sound(path)


def test_without_pyav_its_installation_is_named(tmp_path, monkeypatch):
  path = write(tmp_path / "x.mp4", 3)
  monkeypatch.setitem(sys.modules, "av", None)
  for read in (videos.count, videos.rate, videos.sound, lambda path: list(videos.frames(path))):
    with pytest.raises(ValueError, match=re.escape('run `pip install -e ".[video]"`')):
      read(path)
  assert videos.base("a_left") == "a"
  assert list(videos.find(tmp_path)) == ["x"]


# Files.


def touch(*paths):
  for path in paths:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


def test_only_a_trailing_side_is_stripped():
  names = {"46-30-484x360_left": "46-30-484x360", "video10_1_right": "video10_1"}
  names |= {name: name for name in ("video10_1", "left", "a_left_b", "a_Left", "a-right")}
  assert {name: videos.base(name) for name in names} == names


def test_videos_are_found_anywhere_below_by_their_names(tmp_path):
  touch(tmp_path / "batch1/1-30-1280x720.mp4", tmp_path / "batch2/deep/video2.AVI")
  touch(tmp_path / "a.MKV", tmp_path / "b.mov", tmp_path / "c.txt", tmp_path / "batch1/d.mp4.part")
  touch(tmp_path / ".trash/e.mp4", tmp_path / "batch1/._video2.avi")  # as macOS leaves them
  (tmp_path / "f.mp4").mkdir()
  assert videos.find(tmp_path) == {
    "1-30-1280x720": tmp_path / "batch1/1-30-1280x720.mp4",
    "a": tmp_path / "a.MKV",
    "b": tmp_path / "b.mov",
    "video2": tmp_path / "batch2/deep/video2.AVI",
  }
  with pytest.raises(ValueError, match="nowhere: no such folder"):
    videos.find(tmp_path / "nowhere")


def test_two_videos_of_one_name_are_refused(tmp_path):
  touch(tmp_path / "a/x.mp4", tmp_path / "b/x.avi")
  with pytest.raises(ValueError, match=r"'x': .*a/x\.mp4 and .*b/x\.avi have one name"):
    videos.find(tmp_path)


def test_links_are_followed_inside_the_folder_only(tmp_path, monkeypatch):
  source = tmp_path / "source"
  touch(source / "a/x.mp4", tmp_path / "y.mp4", tmp_path / "other/z.mp4")
  (source / "b").symlink_to(source)  # a circle
  (source / "x.mp4").symlink_to(source / "a/x.mp4")  # the same file again
  assert list(videos.find(source)) == ["x"]
  (source / "y.mp4").symlink_to(tmp_path / "y.mp4")
  with pytest.raises(ValueError, match=r"y\.mp4: a link leads out of"):
    videos.find(source)
  (source / "y.mp4").unlink()
  (source / "c").symlink_to(tmp_path / "other")
  with pytest.raises(ValueError, match=r"source/c: a link leads out of"):
    videos.find(source)
  monkeypatch.setenv("AFFJAX_FOLLOW_LINKS", "1")
  assert list(videos.find(source)) == ["x", "z"]


def test_folders_of_crops_are_left_early_and_others_are_not(tmp_path, monkeypatch):
  touch(*(tmp_path / f"cropped_aligned/v{v}/{k:05d}.jpg" for v in range(3) for k in range(1000)))
  touch(*(tmp_path / f"few/{k}.jpg" for k in range(50)), tmp_path / "few/x.mp4")
  seen, scandir = [], os.scandir

  class Counted:
    """What `os.scandir` gives, counted."""

    def __init__(self, folder):
      self.entries = scandir(folder)

    def __enter__(self):
      return self

    def __exit__(self, *unused):
      self.entries.close()

    def __iter__(self):
      for entry in self.entries:
        seen.append(entry.name)
        yield entry

  monkeypatch.setattr(os, "scandir", Counted)
  assert videos.find(tmp_path) == {"x": tmp_path / "few/x.mp4"}
  assert len(seen) < 400


# Sound.


@pytest.mark.parametrize(
  ("name", "codec", "sound"),
  [
    ("x.mp4", H264, "aac"),
    ("x.mkv", H264, "pcm_s16le"),
    ("x.avi", "mpeg4", "pcm_s16le"),
    ("x.avi", H264, "pcm_s16le"),
  ],
)
def test_a_click_is_heard_when_it_was(tmp_path, name, codec, sound):
  path = write(tmp_path / name, 75, codec=codec, samples=clicks([0.5, 2.25], 3), sound=sound)
  found = videos.sound(path)
  assert found.dtype == np.int16
  assert len(found) == pytest.approx(3 * videos.RATE, abs=1024)
  np.testing.assert_allclose(heard(found), [0.5, 2.25], atol=0.001)
  np.testing.assert_allclose(heard(videos.sound(path, 8000), 8000), [0.5, 2.25], atol=0.001)


@pytest.mark.parametrize("name", ["x.mp4", "x.mkv"])
def test_sound_that_starts_later_is_padded_with_silence(tmp_path, name):
  path = write(tmp_path / name, samples=clicks([0.5, 1], 2), start=0.75)
  found = videos.sound(path)
  np.testing.assert_allclose(heard(found), [1.25, 1.75], atol=0.002)
  assert not found[: round(0.7 * videos.RATE)].any()


@pytest.mark.parametrize("name", ["x.mp4", "x.mkv"])
def test_sound_from_before_the_first_frame_is_cut(tmp_path, name):
  path = write(tmp_path / name, times=1 + np.arange(50) / 25, samples=clicks([0.5, 2], 3))
  np.testing.assert_allclose(heard(videos.sound(path)), [1], atol=0.002)


def test_a_gap_in_the_sound_is_silence_and_moves_nothing(tmp_path):
  gap = (44 * 1024, 88 * 1024)  # from 1.02 to 2.04 seconds
  samples = clicks([0.5, 1.5, 3], 4)
  path = write(tmp_path / "x.mkv", 100, samples=samples, sound="pcm_s16le", gap=gap)
  found = videos.sound(path)
  np.testing.assert_allclose(heard(found), [0.5, 3], atol=0.002)
  assert len(found) == pytest.approx(4 * videos.RATE, abs=32)


def test_a_video_without_sound_has_none(tmp_path):
  found = videos.sound(write(tmp_path / "x.mp4", 5))
  assert found.shape == (0,)
  assert found.dtype == np.int16


@pytest.mark.parametrize(("rate", "channels"), [(44_100, 2), (16_000, 1), (8000, 1), (48_000, 2)])
def test_a_tone_is_resampled_to_the_same_tone(tmp_path, rate, channels):
  wave = lambda rate: 8000 * np.sin(2 * np.pi * 440 * np.arange(2 * rate) / rate)
  # Of two channels one is silent: half of it is left.
  samples = np.stack([wave(rate), 0 * wave(rate)][:channels]).astype(np.int16)
  path = write(tmp_path / "x.avi", codec="mpeg4", samples=samples, sound="pcm_s16le", rate=rate)
  found, inner = videos.sound(path), slice(1000, -1000)
  assert len(found) == pytest.approx(2 * videos.RATE, abs=2)
  expected = wave(videos.RATE)[: len(found)] / channels
  np.testing.assert_allclose(found[inner], expected[inner], atol=80)


def test_sound_at_an_absurd_time_is_refused(tmp_path):
  late = videos.LONGEST + 60
  path = write(tmp_path / "x.mkv", 5, samples=clicks([], 1), sound="pcm_s16le", start=late)
  with pytest.raises(ValueError, match=r"x\.mkv: its sound ends after 12 hours"):
    videos.sound(path)
