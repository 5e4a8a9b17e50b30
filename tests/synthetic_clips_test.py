"""Clips of synthetic faces: one person and one view, patterns that come and go, speech, blinks."""

import dataclasses

import numpy as np
import pytest

from affjax import labels
from tfds_builders.synthetic_faces import clips, knobs, label_model, renderer
from tfds_builders.synthetic_faces import synthetic_faces_dataset_builder as builders

VERSION = "0.3.0"
TIMES = knobs.Clips(frames=64)
SETTING = knobs.Knobs(clips=TIMES)
UNITS = label_model.UNITS
LIPS, LIDS = UNITS.index(25), UNITS.index(43)


def render(image, identity=0, setting=SETTING):
  return renderer.render_face(VERSION, 0, "test", identity, image, setting)


def chain(number, labels=knobs.Labels(), setting=TIMES):  # noqa: B008
  return clips.draw(np.random.default_rng(number), labels, setting, number)


def beat(pattern, start, speech=0.0):
  """A pattern with all of its units at .6, onset .4 and offset 1 second."""
  number = next(i for i, p in enumerate(label_model.PATTERNS) if p.name == pattern)
  found = label_model.PATTERNS[number]
  present = np.array([found.units.get(unit, 0) > 0.5 for unit in UNITS])
  apex = 0.6 * np.tile(present[:, None], 2)
  expression = label_model.CLASSES.index(found.expression)
  drawn = label_model.Drawn(expression, number, present, np.full(8, 0.125))
  return clips.Beat(start, 0.4, 1.0, drawn, apex, np.zeros(3), np.zeros(2), speech)


def made(*beats, blinks=(100.0,)):
  """A chain of these patterns whose head is still."""
  loudness, waves = np.ones(4), np.zeros((3, 5, 2))
  return clips.Chain(beats, np.array(blinks), 0.2, loudness, 0.6, waves)


def test_pictures_are_of_no_clip_unless_clips_are_wanted():
  face = render(3, setting=knobs.Knobs())
  record = builders.example("test", 0, 3, face, labels.EXPRESSION_MTL)
  assert (record["clip"], record["frame"], record["blink"]) == ("", 0, 0)


def test_frames_know_their_clip_and_do_not_depend_on_the_order():
  setting = knobs.Knobs(clips=knobs.Clips(frames=4))
  places = [(identity, image) for identity in range(2) for image in range(6)]
  first = {place: render(place[1], place[0], setting) for place in places}
  renderer._draw_clip.cache_clear()
  for identity, image in reversed(places):
    face = render(image, identity, setting)
    assert face.jpeg == first[identity, image].jpeg
    record = builders.example("test", identity, image, face, labels.EXPRESSION_MTL)
    assert record["clip"] == f"test/{identity:06d}/{image // 4}"
    assert record["frame"] == image % 4
  assert len({face.jpeg for face in first.values()}) == len(places)


def test_within_a_clip_light_camera_and_occluders_stay_and_between_clips_they_change():
  occluded = dataclasses.replace(knobs.OCCLUDED, glasses=0.5)
  setting = knobs.Knobs(clips=knobs.Clips(frames=5), occluders=occluded)
  faces = [render(image, 0, setting) for image in range(15)]
  views = set()
  for clip in range(3):
    mine = faces[5 * clip : 5 * clip + 5]
    for face in mine:
      np.testing.assert_array_equal(face.scene.light, mine[0].scene.light)
      assert face.faults == mine[0].faults
      assert face.scene.glasses == mine[0].scene.glasses
      assert face.scene.hand == mine[0].scene.hand
      assert face.scene.framing.focal == mine[0].scene.framing.focal
    views.add(mine[0].scene.light.tobytes())
  assert len(views) == 3


def test_heads_eyes_and_units_move_smoothly():
  for number in range(4):
    moments = [clips.at(chain(number), frame / 50) for frame in range(400)]
    heads = np.array([moment.head for moment in moments])
    strength = np.array([moment.intensity for moment in moments])
    assert np.abs(np.diff(heads, axis=0)).max() < 1.5  # degrees in a fiftieth of a second
    assert np.ptp(heads[:, 0]) > 0.5
    silent = np.delete(strength, clips.LIPS, axis=1)
    # An onset of .3 seconds climbs by .1 at most in a fiftieth.
    assert np.abs(np.diff(silent, axis=0)).max() < 0.12
    assert np.ptp(strength, axis=0).max() > 0.3


def test_units_rise_quickly_and_fall_slowly():
  film = made(beat("rest", -5), beat("prototype", 2.0), beat("rest", 4.0))
  prototype = film.beats[1].apex
  assert prototype.max() == 0.6
  rows = prototype.max(1) > 0
  at = lambda time: clips.at(film, time).intensity[rows].mean()
  assert at(1.99) == 0
  assert at(2.2) == pytest.approx(0.3)
  assert at(2.4) == at(3.9) == pytest.approx(0.6)
  assert at(4.4) > 0.3
  assert at(4.5) == pytest.approx(0.3)
  assert at(5.0) == pytest.approx(0)


def test_the_label_is_the_pattern_that_is_held_or_more_than_half_approached():
  film = made(beat("rest", -5), beat("closed", 2.0))
  name = lambda time: label_model.CLASSES[clips.at(film, time).drawn.expression]
  assert name(0.0) == name(2.19) == "neutral"
  assert name(2.21) == name(9.0) == "anger"


def test_speech_opens_the_lips_at_its_pace_and_duty():
  film = made(beat("speaking", -1, speech=4.0))
  times = np.arange(0, 5, 0.005)
  lips = np.array([clips.at(film, t).intensity[LIPS, 0] for t in times])
  opened = lips > 0.01
  assert opened.mean() == pytest.approx(0.6, abs=0.03)
  assert (np.diff(opened.astype(int)) == 1).sum() == pytest.approx(5 * 4, abs=1)
  assert lips.max() == pytest.approx(0.6, abs=0.01)
  silent = made(beat("rest", -1))
  assert np.ptp([clips.at(silent, t).intensity[LIPS, 0] for t in times]) == 0


def test_blinks_close_the_lids_and_count_for_nothing():
  film = made(beat("rest", -1), blinks=(1.0,))
  times = np.arange(0, 2, 0.01)
  moments = [clips.at(film, t) for t in times]
  closing = np.array([moment.blink for moment in moments])
  assert (closing > 0).sum() == pytest.approx(20, abs=1)  # two tenths of a second
  assert closing[100] == 1
  assert all(moment.intensity[LIDS].max() == 0 for moment in moments)
  assert clips.blinking(moments[100])[LIDS].min() == 1
  gaps = np.concatenate(
    [np.diff(chain(i, setting=knobs.Clips(frames=480)).blinks) for i in range(9)]
  )
  assert gaps.min() >= 3
  assert gaps.max() <= 5


def test_a_blink_is_seen_and_leaves_the_labels_alone():
  faces = [render(image) for image in range(64)]
  closed = next(i for i, face in enumerate(faces) if face.blink > 0.95)
  lids = lambda face: np.ptp(face.picture.landmarks[[37, 38, 41, 40], 1])
  opened = [lids(face) for face in faces if face.blink == 0 and face.intensity[LIDS].max() < 0.1]
  assert lids(faces[closed]) < 0.75 * np.median(opened)
  assert faces[closed].intensity[LIDS].max() < 0.95
  for face in faces:
    np.testing.assert_allclose(face.va, label_model.valence_arousal(face.intensity))
  assert len({face.expression for face in faces}) > 1


def test_a_clip_can_walk_through_all_classes():
  walk = knobs.Labels("strong", walk=True)
  film = chain(0, walk, knobs.Clips(frames=400))
  classes = [beat.drawn.expression for beat in film.beats]
  assert classes[:8] == list(range(8))


def test_a_person_can_walk_through_all_classes_over_many_pictures():
  setting = knobs.Knobs(labels=knobs.Labels("strong", walk=True))
  faces = [render(image, 2, setting) for image in range(16)]
  assert sorted(face.expression for face in faces) == sorted([*range(8)] * 2)
  assert len({face.attributes["age"] for face in faces}) == 1


def test_the_clips_config_writes_whole_clips(tmp_path):
  config = next(c for c in builders.Builder.BUILDER_CONFIGS if c.name == "clips")
  assert config.images % config.setting.clips.frames == 0
  few = dataclasses.replace(
    config, name="few", identities=(2, 1, 1), images=3, setting=knobs.Knobs(clips=knobs.Clips(3))
  )
  builder = builders.Builder(data_dir=tmp_path, config=few)
  builder.download_and_prepare(file_format="array_record")
  source = builder.as_data_source("train")
  rows = [source[i] for i in range(6)]
  assert [row["clip"].decode() for row in rows] == ["train/000000/0"] * 3 + ["train/000001/0"] * 3
  assert [int(row["frame"]) for row in rows] == [0, 1, 2] * 2
