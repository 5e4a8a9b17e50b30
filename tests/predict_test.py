"""`affjax.predict`: rendered faces in photographs and videos, whose places are known, to tables."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from conftest import debug_config, save_run
from PIL import Image

import affjax
from affjax import (
  checkpoints,
  faces,
  media,
  overlay,
  postprocess,
  predict,
  procedures,
  stages,
  stream,
  tables,
  tracking,
)
from affjax.data import records
from configs import temporal

av = pytest.importorskip("av")
pytest.importorskip("onnxruntime")  # of the face detector
pa = pytest.importorskip("pyarrow")

H264 = next((name for name in ("libx264", "libopenh264") if name in av.codecs_available), "mpeg4")
WIDTH, HEIGHT, SIDE, FPS = 320, 240, 96, 25


@pytest.fixture(scope="module")
def heads(tiny_faces):
  """Rendered faces that look at the camera."""
  split = records.shards(records.builder("synthetic_faces", "tiny", tiny_faces), "train")
  found = [records.decode(records.image_of(split.record(row))) for row in range(24)]
  sure = [one.scores.max(initial=0) for one in faces.Detector(min_face=40)(found)]
  return [found[row] for row in np.argsort(sure)[::-1][:4]]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return save_run(tmp_path_factory.mktemp("predicted") / "run", debug_config())


@pytest.fixture(scope="module")
def run_over_time(tmp_path_factory):
  config = debug_config("debug,plain=true")
  config["data"]["clips"] = {"length": 6, "stride": 0, "step": 1, "shuffle": "none"}
  config["model"]["temporal"] = dict(temporal.MODELS["gru"], width=32, depth=1)
  config["image_size"] = config["data"]["image_size"] = 32
  # Of what is drawn, no variance may be negative.
  rng, where = np.random.default_rng(0), tmp_path_factory.mktemp("predicted")
  drawn = lambda leaf: np.abs(0.2 * rng.normal(size=leaf.shape)).astype(leaf.dtype)
  state = jax.tree.map(drawn, jax.eval_shape(procedures.from_config(config).init))
  (where / "config.json").write_text(json.dumps(config))
  saved = checkpoints.Checkpoints(where / "checkpoints")
  saved.save(3, state, {})
  saved.score(3, 0.5)
  saved.close()
  return where


@pytest.fixture(scope="module")
def predictor(run):
  return affjax.load(run)


def rows_of(predictor, where, **options):
  """What `predict.rows` gives, as the table has it: column -> values, by row."""
  options = predict.Options(**{"detect_every": 1} | options)
  found = list(predict.rows(media.find(where), predictor, options, stages.Clock()))
  kinds = predict.kinds(predictor, bool(options.windows(predictor)))
  columns = predict.columns(found, predictor, kinds)
  return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def scene(heads, places, frame=0, size=(WIDTH, HEIGHT)):
  """Heads pasted at (left, top) into a ground that moves."""
  ground = np.linspace(60, 160, 2 * size[0], dtype=np.uint8)[None, :, None]
  picture = np.repeat(np.roll(ground, 3 * frame, 1)[:, : size[0]], size[1], 0).repeat(3, -1)
  for head, place in zip(heads, places, strict=False):
    if place is not None:
      x, y = map(round, place)
      picture[y : y + SIDE, x : x + SIDE] = cv2.resize(head, (SIDE, SIDE))
  return np.ascontiguousarray(picture)


def write(path, pictures, codec=H264, times=None, options=None, sound=False):
  """Writes a video; one frame in ten is a whole picture."""
  pictures = iter(pictures)
  first = next(pictures)
  with av.open(str(path), "w", options=options or {}) as container:
    video = container.add_stream(codec, rate=FPS)
    video.width, video.height, video.pix_fmt, video.gop_size = *first.shape[1::-1], "yuv420p", 10
    video.bit_rate = 2_000_000
    audio = container.add_stream("aac", rate=16_000, layout="mono") if sound else None
    for number, picture in enumerate([first, *pictures]):
      frame = av.VideoFrame.from_ndarray(picture, "rgb24")
      frame.pts = number if times is None else times[number]
      container.mux(video.encode(frame))
    container.mux(video.encode())
    if audio is not None:
      tone = (8000 * np.sin(np.arange(16_000) / 6)).astype(np.int16)[None]
      heard = av.AudioFrame.from_ndarray(tone, "s16", "mono")
      heard.sample_rate = 16_000
      container.mux(audio.encode(heard))
      container.mux(audio.encode())
  return path


def walk(frame):
  """Where two people are: they cross; the second leaves in frame 20 (from 0)."""
  return (10 + 8 * frame, 20), (214 - 8 * frame, 130) if frame < 20 else None


@pytest.fixture(scope="module")
def film(heads, tmp_path_factory):
  """26 frames of two people, the second gone after 20, and nobody in the last four."""
  path = tmp_path_factory.mktemp("film") / "film.mp4"
  places = [walk(frame) if frame < 22 else (None, None) for frame in range(26)]
  return write(path, [scene(heads, p, k) for k, p in enumerate(places)], sound=True)


def command(run, where, *options):
  predict.main([f"--checkpoint={run}", f"--input={where}", *map(str, options)])


def read(path):
  with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
    return list(csv.DictReader(file))


def box(row):
  return np.array([np.float32(row[side]) for side in ("left", "top", "right", "bottom")])


def lies_on(found, left, top, side):
  """Whether a box is that of a face which fills most of a square."""
  square = np.array([left, top, left + side, top + side])
  return tracking.overlaps(found[None], square[None])[0, 0] > 0.5


def tracks(rows):
  """Track -> its frames."""
  found = {}
  for row in rows:
    if row["track"]:
      found.setdefault(int(row["track"]), []).append(int(row["frame"]))
  return found


# Videos.


@pytest.fixture(scope="module")
def table(run, film, tmp_path_factory):
  """The film's table, with what else is written."""
  folder = tmp_path_factory.mktemp("tables")
  options = [f"--output={folder}/out.csv", f"--features={folder}/out.npz"]
  command(run, film, *options, f"--overlay={folder}/out.mp4", "--detect_every=1")
  return folder / "out.csv"


def test_every_frame_has_the_rows_of_the_people_in_it(table):
  rows = read(table)
  assert [int(row["frame"]) for row in rows] == sorted(int(row["frame"]) for row in rows)
  assert tracks(rows) in (
    {1: [*range(1, 23)], 2: [*range(1, 21)]},
    {1: [*range(1, 21)], 2: [*range(1, 23)]},
  )
  assert [(row["frame"], row["note"]) for row in rows if not row["track"]] == [
    (str(frame), "no face") for frame in range(23, 27)
  ]
  for row in rows:
    assert float(row["time"]) == pytest.approx((int(row["frame"]) - 1) / FPS, abs=1e-3)
    assert all(row[name] == "" for name in ("valence", "AU12_on", "face")) == (not row["track"])


def test_boxes_are_where_the_faces_are(table):
  for track, frames in tracks(read(table)).items():
    own = [row for row in read(table) if row["track"] == str(track)]
    person = int(box(own[0])[0] > WIDTH / 2)
    for row, frame in zip(own, frames, strict=True):
      x, y = walk(frame - 1)[person]
      assert lies_on(box(row), x, y, SIDE)
      assert float(row["face"]) > 0.9


def crops_of(film, predictor):
  """(frame, box) -> the face that the model is given, found and cut out one by one."""
  detector, crop = faces.Detector(), faces.Crop.from_json(predictor.contract["face"])
  for shot in media.shots(film):
    found = detector([shot.image])[0]
    for its, points in zip(found.boxes, found.points, strict=True):
      yield (shot.frame, its), crop.align(shot.image, points)


def test_a_row_is_what_the_predictor_says_of_the_aligned_face(table, predictor, film):
  places, crops = zip(*crops_of(film, predictor), strict=True)
  prediction = predictor.predict(list(crops)).columns()
  rows = [row for row in read(table) if row["track"]]
  assert len(rows) == len(crops)
  assert [*rows[0]][9:-1] == [*prediction]
  assert len(set(prediction["valence"].tolist())) > 10  # the model tells them apart
  for number, (frame, its) in enumerate(places):
    row = next(r for r in rows if int(r["frame"]) == frame and np.allclose(box(r), its, atol=1e-3))
    for name, values in prediction.items():
      if values.dtype.kind == "f":
        assert float(row[name]) == pytest.approx(values[number], abs=2e-6)
      else:
        assert row[name] == str(values[number])


def test_csv_and_parquet_hold_the_same_numbers_to_the_last_bit(table, predictor, film, tmp_path):
  from pyarrow import parquet

  found = list(predict.rows([film], predictor, predict.Options(detect_every=1), stages.Clock()))
  kinds = predict.kinds(predictor, False)
  with tables.Table(f"{tmp_path}/out.parquet", kinds) as written:
    for start in range(0, len(found), 7):
      written.write(predict.columns(found[start : start + 7], predictor, kinds))
  found, rows = parquet.read_table(tmp_path / "out.parquet").to_pydict(), read(table)
  assert [*found] == [*rows[0]]
  for name, values in found.items():
    for value, row in zip(values, rows, strict=True):
      if isinstance(value, float) and name != "time":
        assert np.float32(row[name]) == np.float32(value)
      elif isinstance(value, float):
        assert float(row[name]) == value
      else:
        assert row[name] == ("" if value is None else str(value))
  assert not list(tmp_path.glob("*.partial*"))


def test_features_stand_in_the_order_of_the_rows(table, predictor, film):
  vectors, rows = np.load(table.with_suffix(".npz"))["features"], read(table)
  assert len(vectors) == len(rows)
  there = np.array([bool(row["track"]) for row in rows])
  assert np.isnan(vectors[~there]).all()
  places, crops = zip(*crops_of(film, predictor), strict=True)
  for (frame, its), vector in zip(places, predictor.features(list(crops)), strict=True):
    of = [i for i, r in enumerate(rows) if r["track"] and int(r["frame"]) == frame]
    row = next(i for i in of if np.allclose(box(rows[i]), its, atol=1e-3))
    np.testing.assert_allclose(vectors[row], vector, atol=1e-5)


def test_of_an_overlay_every_frame_is_there_and_drawn_where_the_box_is(table, film):
  before = [shot.image.astype(int) for shot in media.shots(film)]
  after = [shot.image.astype(int) for shot in media.shots(table.with_suffix(".mp4"))]
  times = [[s.time for s in media.shots(path)] for path in (film, table.with_suffix(".mp4"))]
  assert len(after) == len(before) == 26
  np.testing.assert_allclose(*times, atol=1e-3)
  rows = read(table)
  for row in (rows[0], rows[1], rows[20]):
    frame, (left, top, right, _) = int(row["frame"]) - 1, box(row).round().astype(int)
    changed = np.abs(after[frame] - before[frame]).sum(-1)
    edge = changed[top - 1 : top + 2, left:right].max(0)
    assert np.median(edge) > 60
    inside = changed[top + 8 : top + 40, left + 8 : right - 8]
    assert np.median(inside) < 30
  assert np.abs(after[24] - before[24]).max(-1)[60:].max() < 60  # nobody: only a note, at the top


def test_an_overlay_keeps_the_sound(table, film):
  def sound(path):
    with av.open(str(path)) as container:
      return [bytes(p) for p in container.demux(audio=0) if p.size]

  assert sound(table.with_suffix(".mp4")) == sound(film)[: len(sound(table.with_suffix(".mp4")))]
  assert len(sound(table.with_suffix(".mp4"))) >= len(sound(film)) - 2


def test_smoothing_is_that_of_the_whole_track_with_the_raw_values_beside(predictor, film):
  rows = rows_of(predictor, film, smooth={"kind": "gaussian", "width": 2})
  for track in tracks(rows):
    own = [row for row in rows if row["track"] == track]
    frames = np.array([int(row["frame"]) for row in own])
    columns = [n for n in own[0] if f"raw_{n}" in own[0] and n != "expression" and n[-3:] != "_on"]
    raw, smooth = (
      np.array([[float(r[p + n]) for n in columns] for r in own]) for p in ("raw_", "")
    )
    expected = postprocess.smooth(raw, frames, frames > 0, kind="gaussian", width=2)
    np.testing.assert_allclose(smooth, expected, atol=1e-5)
    assert np.abs(raw - smooth).max() > 1e-3
    probabilities = [n for n in columns if n.startswith("p_")]
    for row, values in zip(own, smooth, strict=True):
      best = probabilities[np.argmax([values[columns.index(n)] for n in probabilities])]
      assert row["expression"] == best.removeprefix("p_")
      assert row["AU12_on"] == (values[columns.index("AU12")] >= 0.5)


def test_a_run_over_time_sees_each_person_as_in_one_piece(run_over_time, tmp_path, monkeypatch):
  monkeypatch.setattr(predict, "CORE", 6)  # pieces of a few windows
  predictor = affjax.load(run_over_time)
  size, rng = predictor.image_size, np.random.default_rng(0)
  path = tmp_path / "faces.mkv"
  write(path, rng.integers(0, 255, (70, size, size, 3), np.uint8), "ffv1")
  images = [shot.image for shot in media.shots(path)]
  expected = predictor.predict(images, range(70)).columns()
  rows = rows_of(predictor, path, aligned=True)
  assert [row["frame"] for row in rows] == [*range(1, 71)]
  for name in ("valence", "p_fear", "AU12"):
    np.testing.assert_allclose([float(row[name]) for row in rows], expected[name], atol=1e-5)
  alone = predictor.predict(images[35:36]).columns()["valence"]
  assert abs(alone[0] - expected["valence"][35]) > 1e-4


def test_only_every_nth_frame_is_looked_at(predictor, film):
  rows = rows_of(predictor, film, every=5)
  assert sorted({row["frame"] for row in rows}) == [1, 6, 11, 16, 21, 26]
  assert sorted(map(len, tracks(rows).values())) == [4, 5]


def test_between_two_looks_a_face_moves_evenly(predictor, film, table):
  rows, every = rows_of(predictor, film, detect_every=3), read(table)
  assert {row["frame"] for row in rows} == {int(row["frame"]) for row in every}
  assert sorted(map(len, tracks(rows).values())) == [20, 22]
  # One is gone in 21, the other in 23: between 19, 22 and 25 all frames are looked at.
  looked = {row["frame"] for row in rows if row["face"] > 0}
  assert looked == {*range(1, 20, 3), 20, 21, 22}
  for row in (row for row in rows if row["track"]):
    beside = [box(r) for r in every if r["frame"] == str(row["frame"]) and r["track"]]
    assert min(np.abs(box(row) - other).max() for other in beside) < 0.06 * SIDE


def test_a_video_is_written_with_the_times_that_it_is_given(film, tmp_path):
  times = [0.0, 0.04, 0.5, 0.6, 2.0]
  with overlay.Video(tmp_path / "a.mp4", film) as video:
    for number, at in enumerate(times):
      video.write(np.full((51, 81 + number, 3), 50 * number, np.uint8), at)  # even in the file
    assert not (tmp_path / "a.mp4").exists()
  found = list(media.shots(tmp_path / "a.mp4"))
  np.testing.assert_allclose([shot.time for shot in found], times, atol=1e-3)
  assert {shot.image.shape for shot in found} == {(50, 80, 3)}
  levels = [shot.image.mean() for shot in found]
  np.testing.assert_allclose(levels, [0, 50, 100, 150, 200], atol=4)


# What is damaged.


def corrupt(source, path, number):
  """A copy of a video in which one packet is noise."""
  with av.open(str(source)) as old, av.open(str(path), "w") as new:
    stream = new.add_stream_from_template(old.streams.video[0])
    for k, packet in enumerate(p for p in old.demux(video=0) if p.size):
      if k == number:
        damaged = av.Packet(b"\xff" * 40)
        damaged.pts, damaged.dts, damaged.time_base = packet.pts, packet.dts, packet.time_base
        packet = damaged
      packet.stream = stream
      new.mux(packet)
  return path


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.avi"])
@pytest.mark.parametrize("codec", [H264, "mpeg4"])
def test_a_damaged_packet_is_a_frame_and_those_behind_it_keep_their_numbers(tmp_path, codec, name):
  whole = write(tmp_path / name, [scene([], [], 7 * k) for k in range(40)], codec)
  pictures = [shot.image.astype(int) for shot in media.shots(whole)]
  assert len(pictures) == 40
  # All but the second are whole pictures, on which others build. AVI tells when frames are ready,
  # and how late that is by the first of them.
  for number in (0, 5, 10, 20)[name.endswith("avi") :]:
    found = list(media.shots(corrupt(whole, tmp_path / f"cut_{name}", number)))
    assert [shot.frame for shot in found] == [*range(1, 41)]
    np.testing.assert_allclose([shot.time for shot in found], np.arange(40) / FPS, atol=2e-3)
    broken = [shot.frame for shot in found if shot.image is None]
    assert 1 <= len(broken) <= 12
    assert min(abs(frame - number - 1) for frame in broken) <= 2  # AVI has other times
    for shot in (shot for shot in found if shot.image is None):
      assert shot.note.startswith("cannot be decoded: ")
    for k in [*range(number - 3), *range(number + 12, 40)]:
      assert np.abs(found[k].image - pictures[k]).mean() < 12, k


def test_a_damaged_frame_is_a_row_among_those_of_the_others(predictor, heads, tmp_path):
  whole = write(tmp_path / "a.mkv", [scene(heads, [(10 + 4 * k, 40)], k) for k in range(24)])
  rows = rows_of(predictor, corrupt(whole, tmp_path / "cut.mkv", 10), detect_every=2)
  assert [row["frame"] for row in rows] == [*range(1, 25)]
  broken = [row["frame"] for row in rows if row["note"] and not row["track"]]
  assert 11 in broken
  assert len(broken) < 12
  assert {row["track"] for row in rows if row["frame"] not in broken} == {1}


def test_a_video_that_ends_early_has_the_rows_of_its_frames(
  run, predictor, heads, film, tmp_path, capsys
):
  cut = tmp_path / "cut.mkv"
  write(tmp_path / "whole.mkv", [scene(heads, [(20 + k, 40)], k) for k in range(40)])
  content = (tmp_path / "whole.mkv").read_bytes()
  cut.write_bytes(content[: len(content) * 2 // 3])
  rows = rows_of(predictor, cut)
  assert 10 < len(tracks(rows)[1]) < 40
  whole = film.read_bytes()  # of an MP4 the table of contents is at the end
  (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
  with pytest.raises(SystemExit, match="nothing can be decoded"):
    command(run, tmp_path / "cut.mp4")
  said = list(csv.DictReader(capsys.readouterr().out.splitlines()))
  assert [(row["frame"], row["track"]) for row in said] == [("1", "")]
  assert "cannot be decoded: not a video that can be read" in said[0]["note"]


def test_times_are_those_of_the_file_and_not_of_its_rate(heads, tmp_path):
  stamps = [0, 1, 2, 10, 11, 40]
  film = write(tmp_path / "a.mkv", [scene(heads, [(9, 9)])] * 6, times=stamps)
  found = [shot.time for shot in media.shots(film)]
  np.testing.assert_allclose(found, np.array(stamps) / FPS, atol=1e-3)


# Photographs.


@pytest.fixture(scope="module")
def album(heads, tmp_path_factory):
  """A folder of photographs, good and bad."""
  folder = tmp_path_factory.mktemp("album")
  (folder / "inner" / "deep").mkdir(parents=True)
  (folder / ".hidden").mkdir()
  plain = scene(heads, [(120, 90)])
  photograph = Image.fromarray(plain)
  photograph.save(folder / "a.png")
  photograph.convert("L").save(folder / "grey.png")
  rgba = photograph.copy()
  rgba.putalpha(200)
  rgba.save(folder / "alpha.png")
  deep = np.asarray(photograph.convert("L")).astype(np.uint16) * 256
  Image.fromarray(deep).save(folder / "deep.png")
  exif = Image.Exif()
  exif[0x0112] = 6  # stored lying on its side
  Image.fromarray(np.rot90(plain)).save(folder / "turned.jpg", exif=exif, quality=95)
  photograph.save(folder / "inner" / "b.webp", quality=95)
  photograph.resize((2 * WIDTH, 2 * HEIGHT)).save(folder / "inner" / "deep" / "large.tiff")
  Image.fromarray(scene(heads, [(10, 20), (200, 130)])).save(folder / "two.jpg", quality=95)
  Image.fromarray(scene([], [])).save(folder / "nobody.jpg")
  (folder / "zero.jpg").write_bytes(b"")
  (folder / "text.jpg").write_text("no picture")
  half = (folder / "a.png").read_bytes()
  (folder / "half.png").write_bytes(half[: len(half) // 2])
  (folder / "notes.txt").write_text("passed over")
  photograph.save(folder / ".hidden" / "c.png")
  return folder


def test_a_folder_is_looked_through_and_whatever_is_in_it_is_a_row(run, album, tmp_path):
  command(run, album, f"--output={tmp_path}/out.csv", f"--overlay={tmp_path}/copies")
  rows = {}
  for row in read(tmp_path / "out.csv"):
    rows.setdefault(str(Path(row["file"]).relative_to(album)), []).append(row)
  names = ["a.png", "alpha.png", "deep.png", "grey.png", "inner/b.webp", "inner/deep/large.tiff"]
  assert [*rows] == sorted(
    [*names, "turned.jpg", "two.jpg", "nobody.jpg", "zero.jpg", "text.jpg", "half.png"],
    key=lambda name: (Path(name).parts[:-1], name),
  )
  for name in [*names, "turned.jpg"]:
    (row,) = rows[name]
    scale = 2 if "large" in name else 1
    assert lies_on(box(row), 120 * scale, 90 * scale, SIDE * scale)
    assert (row["frame"], row["time"], row["track"], row["note"]) == ("", "", "1", "")
  assert [row["track"] for row in rows["two.jpg"]] == ["1", "2"]
  assert float(rows["two.jpg"][0]["face"]) >= float(rows["two.jpg"][1]["face"])
  assert [row["note"] for row in rows["nobody.jpg"]] == ["no face"]
  for name in ("zero.jpg", "text.jpg", "half.png"):
    assert rows[name][0]["note"].startswith("cannot be decoded: ")
  copies = {str(p.relative_to(tmp_path / "copies")) for p in (tmp_path / "copies").rglob("*.*")}
  assert copies == {
    *names[:4], "inner/b.webp.png", "inner/deep/large.tiff.png", "turned.jpg", "two.jpg",
    "nobody.jpg",
  }  # fmt: skip
  left, top, right, _ = box(rows["a.png"][0]).round().astype(int)
  copy = records.read_image(tmp_path / "copies" / "a.png")
  assert len(np.unique(copy[top, left:right], axis=0)) == 1  # one colour, along the whole edge


def test_photographs_are_the_same_however_they_are_stored(album):
  plain = media.read_photograph(album / "a.png")
  np.testing.assert_array_equal(media.read_photograph(album / "alpha.png"), plain)
  grey = media.read_photograph(album / "grey.png")
  np.testing.assert_array_equal(media.read_photograph(album / "deep.png")[..., 0], grey[..., 0])
  assert (grey == grey[..., :1]).all()
  for name in ("turned.jpg", "inner/b.webp"):
    found = media.read_photograph(album / name).astype(int)
    assert np.abs(found - plain).mean() < 3, name


def test_aligned_faces_are_read_and_predicted_as_the_predictor_does(predictor, tmp_path):
  rng = np.random.default_rng(1)
  for name, size in (("a.png", 112), ("b.jpg", 80), ("c.png", 200)):
    pixels = rng.integers(0, 256, (size, size, 3), np.uint8)
    cv2.imwrite(str(tmp_path / name), cv2.GaussianBlur(pixels, (9, 9), 0))
  (tmp_path / "d.png").write_bytes(b"")
  rows = rows_of(predictor, tmp_path, aligned=True)
  expected = predictor.predict([tmp_path / name for name in ("a.png", "b.jpg", "c.png")]).columns()
  for name in ("valence", "p_sadness", "AU25"):
    found = [row[name] for row in rows[:3]]
    np.testing.assert_allclose(found, expected[name], atol=1e-6)
  assert np.isnan([row["face"] for row in rows]).all()
  assert rows[3]["note"].startswith("cannot be decoded: ")


def test_at_most_so_many_faces_of_a_picture_the_surest(predictor, album):
  (row,) = rows_of(predictor, album / "two.jpg", max_faces=1)
  (found,) = faces.Detector()([media.read_photograph(album / "two.jpg")])
  np.testing.assert_allclose(box(row), found.boxes[0], atol=1e-3)


# What is refused.


@pytest.mark.parametrize(
  ("options", "says"),
  [
    (["--output={tmp}/out.txt"], "use a name that ends in .csv or .parquet"),
    (["--output={tmp}/no/out.csv"], "no folder that can be written to"),
    (["--output={tmp}/there.csv"], "is there already: name another, or give --overwrite"),
    (["--overlay={tmp}/copies"], "of a video it is a file, name it .mp4"),
    (["--every=0"], "--every=0: use 1 to 1,000,000"),
    (["--smooth=gaussian"], "KIND:WIDTH"),
    (["--smooth=mean:4"], "an odd number of frames"),
    (["--smooth=box:5"], "use one of mean, median, gaussian"),
    (["--settings={tmp}/there.csv"], "cannot be read as settings"),
    (["--min_face=5"], "min_face=5: use 12 pixels or more"),
  ],
)
def test_what_cannot_be_is_said_in_one_line_before_anything_is_written(
  run, film, tmp_path, capsys, options, says
):
  (tmp_path / "there.csv").write_text("mine")
  with pytest.raises(SystemExit) as error:
    command(run, film, *(option.format(tmp=tmp_path) for option in options))
  said = str(error.value) if isinstance(error.value.code, str) else capsys.readouterr().err
  assert says in said
  assert len(said.splitlines()[-1:]) == 1
  assert [p.name for p in tmp_path.iterdir()] == ["there.csv"]
  assert (tmp_path / "there.csv").read_text() == "mine"


def test_a_place_without_pictures_is_an_error(run, tmp_path):
  (tmp_path / "a.txt").write_text("no picture")
  with pytest.raises(SystemExit, match="no photograph or video in it"):
    command(run, tmp_path)
  with pytest.raises(SystemExit, match="no such file or folder"):
    command(run, tmp_path / "none.jpg")


def test_an_overlay_may_not_lie_among_what_is_read(run, album):
  with pytest.raises(SystemExit, match="name a folder beside it"):
    command(run, album, f"--overlay={album / 'copies'}")


# Its parts.


def test_a_stage_that_runs_ahead_yields_the_same_and_no_more_than_is_asked_for():
  made = []

  def numbers():
    for number in range(100):
      made.append(number)
      yield number

  found = stages.ahead(numbers(), 3)
  assert [next(found) for _ in range(5)] == [0, 1, 2, 3, 4]
  found.close()
  assert len(made) <= 9
  assert list(stages.ahead(numbers(), 3)) == [*range(100)]


def test_an_error_of_a_stage_is_raised_where_it_is_waited_for_and_the_stage_is_closed():
  closed = []

  def failing():
    try:
      yield 1
      raise ValueError("damaged")
    finally:
      closed.append(True)

  with pytest.raises(ValueError, match="damaged"):
    list(stages.ahead(stages.ahead(failing())))
  assert closed == [True]


def test_stages_work_at_the_same_time():
  def slow(items):
    for item in items:
      time.sleep(0.02)
      yield item

  start = time.perf_counter()
  found = list(stages.ahead(slow(stages.ahead(slow(stages.ahead(slow(iter(range(20)))))))))
  assert found == [*range(20)]
  assert time.perf_counter() - start < 0.9  # one after the other: 1.2 seconds


@pytest.mark.parametrize("seed", range(5))
def test_pieces_of_a_track_are_all_of_it_with_what_is_beside_them(seed):
  rng = np.random.default_rng(seed)
  core, beside = int(rng.integers(1, 9)), int(rng.integers(0, 6))
  rows = []
  for file in ("a", "b"):
    for frame in range(1, 60):
      there = [t for t in (1, 2, 3) if rng.random() < 0.7]
      rows += [stream.Row(Path(file), frame, 0.0, t) for t in there] or [
        stream.Row(Path(file), frame, 0.0)
      ]
  of_key, seen = {}, []
  for row in rows:
    of_key.setdefault((row.file, row.track), []).append(row)

  def look(some, piece):
    key = some[0].file, some[0].track
    assert all((row.file, row.track) == key for row in some)
    whole = of_key[key]
    at = whole.index(some[piece][0])
    span = whole[max(at - beside, 0) : at + len(some[piece]) + beside]
    assert some == span
    seen.extend(some[piece])

  options = dict(taken=lambda row: row.track > 0, core=core, beside=beside, patience=100)
  found = list(stream.over_time(iter(rows), look, **options))
  assert all(a is b for a, b in zip(found, rows, strict=True))
  assert sorted(map(id, seen)) == sorted(id(row) for row in rows if row.track)


def test_rows_are_given_back_as_soon_as_they_are_done():
  held = []

  def endless():
    for frame in range(1, 10_000):
      held.append(frame)
      yield stream.Row(Path("a"), frame, 0.0, 1 + (frame % 200 < 3))

  options = dict(taken=lambda row: True, core=10, beside=5, patience=20)
  for number, row in enumerate(stream.over_time(endless(), lambda some, piece: None, **options), 1):
    assert row.frame == number
    assert len(held) - number <= 10 + 5 + 20 + 3


def test_names_and_numbers_are_read_from_a_csv_as_they_were(tmp_path):
  names = ["a,b.jpg", 'a"b.jpg', "a\nb.jpg", "ä 😀.jpg", os.fsdecode(b"\xff\xfe.jpg"), ""]
  numbers = np.random.default_rng(0).normal(size=6).astype(np.float32)
  with tables.Table(f"{tmp_path}/a.csv", {"file": "text", "x": "real"}) as table:
    table.write({"file": names, "x": numbers})
  assert [row["file"] for row in read(tmp_path / "a.csv")] == names
  assert [np.float32(row["x"]) for row in read(tmp_path / "a.csv")] == numbers.tolist()
  assert (tmp_path / "a.csv").read_bytes().startswith(b"file,x\r\n")  # RFC 4180


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_that_is_not_finished_has_another_name_and_can_be_read(tmp_path, kind):
  def stopped(name, rows):
    with tables.Table(f"{tmp_path}/{name}.{kind}", {"x": "real"}) as table:
      if rows:
        table.write({"x": rows})
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    stopped("a", [1.0, None])
  assert [path.name for path in tmp_path.iterdir()] == [f"a.partial.{kind}"]
  if kind == "csv":
    assert [row["x"] for row in read(tmp_path / "a.partial.csv")] == ["1.0", ""]
  else:
    from pyarrow import parquet

    assert parquet.read_table(tmp_path / "a.partial.parquet").to_pydict() == {"x": [1.0, None]}
  with pytest.raises(KeyboardInterrupt):
    stopped("b", [])
  assert not list(tmp_path.glob("b*"))


# Other processes.


def start(run, where, *options, **kwargs):
  return subprocess.Popen(
    [sys.executable, "-m", "affjax.predict", f"--checkpoint={run}", f"--input={where}", *options],
    cwd=Path(__file__).parent.parent,
    stderr=subprocess.PIPE,
    text=True,
    **kwargs,
  )


@pytest.mark.slow
def test_what_is_there_when_it_is_stopped_is_kept_and_said(run, heads, tmp_path):
  film = write(tmp_path / "film.mp4", (scene(heads, [(9 + k % 90, 9)], k) for k in range(4000)))
  process = start(run, film, f"--output={tmp_path}/out.csv")
  partial = tmp_path / "out.partial.csv"
  for _ in range(2400):
    if partial.exists() and partial.stat().st_size > 2000:
      break
    time.sleep(0.1)
  process.send_signal(signal.SIGINT)
  _, said = process.communicate(timeout=30)
  assert process.returncode == 1
  assert re.search(r"interrupted: [\d,]+ faces in [\d,]+ pictures.*out\.partial\.csv", said)
  assert "Traceback" not in said
  rows = read(partial)
  assert [int(row["frame"]) for row in rows] == [*range(1, len(rows) + 1)]
  assert not (tmp_path / "out.csv").exists()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length_of_a_video(run, heads, tmp_path):
  def peak(count):
    film = write(tmp_path / f"{count}.mp4", (scene(heads, [(9, 9)], k) for k in range(count)))
    process = start(
      run, film, f"--output={tmp_path}/{count}.csv", "--detect_every=8", "--smooth=mean:5"
    )
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, said
    assert len(read(tmp_path / f"{count}.csv")) == count
    return usage.ru_maxrss / 1024

  short, long = peak(400), peak(2400)
  frames = 2000 * WIDTH * HEIGHT * 3 / 2**20  # 440 MB, were they kept
  assert long - short < 0.15 * frames
