"""Clips: one person, one view, and a chain of patterns that come and go as expressions do.

Every pattern of the chain has an apex, drawn as for a single picture. From its start on each unit
goes from where it is to that apex along a smooth step, quicker when it rises (onset) than when it
falls (offset). Patterns that talk open and close the lips at the pace of syllables. Light,
background, camera, occluders and crop stay; head and eyes move smoothly.

The expression of a frame is the class of the pattern that is being held or approached: a new
pattern counts from the middle of its onset on, when the face is half-way. Units, valence and
arousal follow the frame's own intensities. Blinks close the lids and count for none of these.
"""

import dataclasses

import numpy as np

from tfds_builders.synthetic_faces import knobs, label_model
from tfds_builders.synthetic_faces.label_model import UNITS

LIPS = tuple(UNITS.index(unit) for unit in (25, 26, 27))
LIDS = UNITS.index(43)
# Hertz of the slow waves that a head wanders by.
SWAY = (0.13, 0.31, 0.57)


@dataclasses.dataclass(frozen=True)
class Beat:
  """One pattern of a chain.

  Attributes:
    start: seconds from the clip's beginning; below 0 for the first, which is there from the outset.
    onset: seconds in which its units rise.
    offset: seconds in which those of the pattern before fall.
    drawn: class, pattern and units.
    apex: [21, 2] intensity of the units when it is held.
    head: [3] how it turns the head, degrees.
    gaze: [2] how it turns the eyes away from the camera, degrees.
    speech: openings of the lips per second; 0 where it does not talk.
  """

  start: float
  onset: float
  offset: float
  drawn: label_model.Drawn
  apex: np.ndarray
  head: np.ndarray
  gaze: np.ndarray
  speech: float


@dataclasses.dataclass(frozen=True)
class Chain:
  """What happens in a clip.

  Attributes:
    beats: the patterns, in order.
    blinks: seconds of the middles of the blinks.
    blink_length: seconds.
    loudness: [syllables] how wide each opening of the lips is, in [0, 1]; over and over.
    duty: share of a syllable that the lips are open.
    waves: [3, 5, 2] amplitude in degrees and phase of each wave of `SWAY` for yaw, pitch and roll
      of the head, yaw and pitch of the eyes.
  """

  beats: tuple[Beat, ...]
  blinks: np.ndarray
  blink_length: float
  loudness: np.ndarray
  duty: float
  waves: np.ndarray


@dataclasses.dataclass(frozen=True)
class Moment:
  """A chain at one time.

  Attributes:
    drawn: class, pattern and units of the pattern that is held or approached.
    intensity: [21, 2] of the units, without blinks.
    blink: how far a blink closes the lids, in [0, 1].
    head: [3] degrees on top of the clip's own turn of the head.
    gaze: [2] degrees that a pattern turns the eyes away from the camera.
    wander: [2] degrees that the eyes wander.
  """

  drawn: label_model.Drawn
  intensity: np.ndarray
  blink: float
  head: np.ndarray
  gaze: np.ndarray
  wander: np.ndarray


def draw(rng: np.random.Generator, labels: knobs.Labels, setting: knobs.Clips, turn: int) -> Chain:
  """Draws a chain as long as a clip.

  Args:
    rng: where the choices come from.
    labels: what the patterns are drawn from.
    setting: times.
    turn: which class comes first, where the classes come in turn.

  Returns:
    The chain.
  """
  length, beats, now = setting.frames / setting.rate, [], None
  while now is None or now < length:
    onset, offset, hold = (
      float(getattr(setting, name).draw(rng)) for name in ("onset", "offset", "hold")
    )
    # The first pattern has been held for a while.
    start = -onset - hold * rng.random() if now is None else now
    drawn = label_model.draw(rng, labels, turn + len(beats))
    pattern = label_model.PATTERNS[drawn.pattern]
    apex = label_model.draw_intensity(rng, drawn)
    head, gaze = label_model.follow(rng, pattern.name)
    speech = float(setting.speech.draw(rng))
    beats.append(
      Beat(start, onset, offset, drawn, apex, head, gaze, speech if pattern.talking else 0.0)
    )
    now = max(start + onset + hold, 0.0)
  gaps = setting.blink.draw(rng, int(length / setting.blink.low) + 2)
  gaps[0] *= rng.random()
  waves = np.stack(
    [
      rng.normal(0, 1, (len(SWAY), 5)) / np.sqrt(len(SWAY) / 2),
      rng.uniform(0, 2 * np.pi, (len(SWAY), 5)),
    ],
    -1,
  )
  # Pitch and roll of a head wander less than yaw.
  waves[..., 0] *= setting.sway * np.array([1, 0.6, 0.5, 0, 0]) + setting.glance * np.array(
    [0, 0, 0, 1, 0.6]
  )
  return Chain(
    beats=tuple(beats),
    blinks=np.cumsum(gaps),
    blink_length=setting.blink_length,
    loudness=rng.uniform(0.55, 1, 64),
    duty=setting.duty,
    waves=waves,
  )


def at(chain: Chain, time: float) -> Moment:
  """What a chain shows at a time, in seconds from its beginning."""
  begun = [beat for beat in chain.beats if beat.start <= time]
  intensity = _speak(chain, begun[0], begun[0].apex, time)
  head, gaze = begun[0].head, begun[0].gaze
  current = begun[0]
  for beat in begun[1:]:
    aim = _speak(chain, beat, beat.apex, time)
    rise, fall = (smooth((time - beat.start) / span) for span in (beat.onset, beat.offset))
    intensity = intensity + (aim - intensity) * np.where(aim > intensity, rise, fall)
    head, gaze = (a + (b - a) * fall for a, b in ((head, beat.head), (gaze, beat.gaze)))
    if time >= beat.start + beat.onset / 2:
      current = beat
  waves = [
    a * np.sin(2 * np.pi * f * time + phase)
    for f, (a, phase) in zip(SWAY, np.moveaxis(chain.waves, -1, 1), strict=True)
  ]
  moved = np.sum(waves, 0)
  away = np.abs(chain.blinks - time).min() / (chain.blink_length / 2)
  return Moment(
    drawn=current.drawn,
    intensity=intensity,
    # Closed for the middle third of a blink.
    blink=float(np.clip(1.5 * (1 - away), 0, 1)),
    head=head + moved[:3],
    gaze=gaze,
    wander=moved[3:],
  )


def smooth(x: float) -> float:
  """A smooth step from 0 at 0 to 1 at 1."""
  x = min(max(x, 0.0), 1.0)
  return x * x * (3 - 2 * x)


def _speak(chain: Chain, beat: Beat, apex: np.ndarray, time: float) -> np.ndarray:
  """The apex with the lips as far open as speech has them now."""
  if not beat.speech:
    return apex
  syllable, place = divmod((time - beat.start) * beat.speech, 1.0)
  width = np.sin(np.pi * place / chain.duty) if place < chain.duty else 0.0
  spoken = apex.copy()
  spoken[list(LIPS)] *= width * chain.loudness[int(syllable) % len(chain.loudness)]
  return spoken


def blinking(moment: Moment) -> np.ndarray:
  """The intensities that are rendered: [21, 2], with the blink."""
  shown = moment.intensity.copy()
  shown[LIDS] = np.maximum(shown[LIDS], moment.blink)
  return shown
