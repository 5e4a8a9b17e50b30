"""Named distributions: everything about the synthetic faces that can be turned.

Angles are degrees, lengths on the picture are shares of the eye distance or pixels at 112 x 112.
The values are judgements (J of the data set's README) unless a source is named.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Normal:
  """A normal distribution, held between two bounds."""

  mean: float
  sd: float
  low: float = -np.inf
  high: float = np.inf

  def draw(self, rng: np.random.Generator, size: int | None = None) -> np.ndarray:
    """Draws one value, or `size` values."""
    return np.clip(rng.normal(self.mean, self.sd, size), self.low, self.high)


@dataclasses.dataclass(frozen=True)
class Uniform:
  """A uniform distribution."""

  low: float
  high: float

  def draw(self, rng: np.random.Generator, size: int | None = None) -> np.ndarray:
    """Draws one value, or `size` values."""
    return rng.uniform(self.low, self.high, size)


@dataclasses.dataclass(frozen=True)
class LogUniform:
  """A distribution whose logarithm is uniform."""

  low: float
  high: float

  def draw(self, rng: np.random.Generator, size: int | None = None) -> np.ndarray:
    """Draws one value, or `size` values."""
    return np.exp(rng.uniform(np.log(self.low), np.log(self.high), size))


@dataclasses.dataclass(frozen=True)
class Person:
  """Who is shown.

  Attributes:
    slider: each of the mesh's identity sliders; 1 is the end of its range.
    asymmetry: each of the mesh's one-sided sliders.
    brow_tilt: outer minus inner height of the brows at rest, in eye distances.
    mouth_corners: height of the mouth's corners over its middle at rest, in eye distances.
    age: years.
    group: concentration of the Dirichlet of sex (two shares) and of ancestry (three).
    weight: slider from thin (0) to heavy (1).
    muscle: slider from slack (0) to muscular (1).
    albedo: factor on the skin's albedo.
  """

  slider: Normal = Normal(0, 0.17, -0.5, 0.5)
  asymmetry: Normal = Normal(0, 0.07, 0, 0.25)
  brow_tilt: Normal = Normal(-0.025, 0.02)
  mouth_corners: Normal = Normal(0.004, 0.01)
  age: Uniform = Uniform(18, 80)
  group: float = 0.6
  weight: Normal = Normal(0.5, 0.12, 0, 1)
  muscle: Normal = Normal(0.5, 0.12, 0, 1)
  albedo: Normal = Normal(1, 0.1, 0.7, 1.3)


@dataclasses.dataclass(frozen=True)
class View:
  """How the face is seen and lit.

  Attributes:
    yaw: head turned; positive to the right of the picture.
    pitch: head raised; positive up.
    roll: head tilted; positive clockwise in the picture.
    gaze: eyes turned away from the camera, both ways.
    focal: millimetres, as on 36 mm film.
    key_azimuth: direction of the main light; 0 is from the camera.
    key_elevation: its height.
    key_to_fill: ratio of the main light to the one opposite.
    ambient: light from everywhere, relative to both.
    temperature: colour of the main light in kelvin.
    turn: jitter of the crop's rotation.
    zoom: jitter of its size.
    shift: jitter of its place, in eye distances.
  """

  yaw: Normal = Normal(0, 18, -45, 45)
  pitch: Normal = Normal(0, 10, -30, 30)
  roll: Normal = Normal(0, 6, -25, 25)
  gaze: Normal = Normal(0, 10, -25, 25)
  focal: Uniform = Uniform(28, 85)
  key_azimuth: Uniform = Uniform(-70, 70)
  key_elevation: Normal = Normal(30, 15, -20, 75)
  key_to_fill: LogUniform = LogUniform(1, 6)
  ambient: Uniform = Uniform(0.15, 0.5)
  temperature: Uniform = Uniform(3000, 8000)
  turn: Normal = Normal(0, 2)
  zoom: Normal = Normal(1, 0.04, 0.85, 1.15)
  shift: Normal = Normal(0, 0.02)


@dataclasses.dataclass(frozen=True)
class Camera:
  """What goes wrong in the camera. Each fault happens with probability `rate` unless said.

  Attributes:
    rate: probability of each fault.
    blur: standard deviation of a Gaussian blur or half the length of a motion blur, in pixels.
    noise: standard deviation of the noise, on values in [0, 1].
    exposure: stops.
    gamma: exponent on values in [0, 1].
    cast: gain of each colour.
    grey_rate: probability that the picture has no colour.
    reduced_rate: probability that the picture is reduced, then enlarged again.
    resolution: pixels across to which it is reduced.
    jpeg: quality of a first JPEG compression, with chroma at half resolution.
  """

  rate: float = 0.3
  blur: Uniform = Uniform(0, 1.5)
  noise: Uniform = Uniform(0, 0.04)
  exposure: Uniform = Uniform(-0.7, 0.7)
  gamma: Uniform = Uniform(0.8, 1.25)
  cast: Uniform = Uniform(0.92, 1.08)
  grey_rate: float = 0.05
  reduced_rate: float = 0.3
  resolution: Uniform = Uniform(40, 112)
  jpeg: Uniform = Uniform(40, 95)


@dataclasses.dataclass(frozen=True)
class Labels:
  """What the faces show, see `label_model`.

  Attributes:
    mode: "natural" or "strong".
    ambiguity: share of faces that keep whatever units were drawn, see `label_model.draw`.
    prior: weight of each class of `label_model.CLASSES`; 0 leaves a class out of the data set.
      None: the mode's.
    walk: whether a person's pictures go through all classes in turn, in equal shares, instead of
      drawing each from the prior.
  """

  mode: str = "natural"
  ambiguity: float = 0.25
  prior: tuple[float, ...] | None = None
  walk: bool = False


@dataclasses.dataclass(frozen=True)
class Occluders:
  """What stands before the face: nothing, unless a probability is raised.

  Attributes:
    hand_often: probability of a hand in sadness, fear, surprise and the confused pattern of other.
    hand_seldom: of one elsewhere.
    mouth_angle: of the fingers of a hand before the mouth, degrees up from the horizontal.
    cheek_angle: of a hand on the cheek.
    spread: of the fingers, degrees.
    curl: how much shorter bent fingers look.
  """

  hand_often: float = 0.0
  hand_seldom: float = 0.0
  mouth_angle: Uniform = Uniform(5, 50)
  cheek_angle: Uniform = Uniform(55, 85)
  spread: Uniform = Uniform(-1, 8)
  curl: Uniform = Uniform(0, 1)


HANDS = Occluders(hand_often=0.3, hand_seldom=0.05)


@dataclasses.dataclass(frozen=True)
class Knobs:
  """All of it.

  Attributes:
    labels: what is shown.
    person: who is shown.
    view: how the face is seen and lit.
    camera: what goes wrong.
    occluders: what stands before the face.
  """

  labels: Labels = Labels()
  person: Person = Person()
  view: View = View()
  camera: Camera = Camera()
  occluders: Occluders = Occluders()


# The six basic expressions alike, without and with neutral.
SIX = (0, 1, 1, 1, 1, 1, 1, 0)
SEVEN = (1, 1, 1, 1, 1, 1, 1, 0)
# Counts of the synthetic training images of ABAW4 (Kollias, 2022, arXiv:2207.01138).
LSD_TRAIN = (0, 18286, 15150, 10923, 73285, 144631, 14976, 0)
# How FER+ looks: grey, 48 pixels across, framed by a face detector without alignment, so looser and
# off-centre. INFERRED, all of it: to be measured on its training images.
FERPLUS_VIEW = View(
  roll=Normal(0, 8, -30, 30),
  turn=Normal(0, 7, -20, 20),
  zoom=Normal(0.9, 0.09, 0.65, 1.15),
  shift=Normal(0, 0.12, -0.35, 0.35),
)
FERPLUS_CAMERA = Camera(grey_rate=1.0, reduced_rate=1.0, resolution=Uniform(48, 48))


def describe(part: object, prefix: str = "") -> dict[str, str]:
  """Writes out every knob: name -> value, such as `view.yaw.sd` -> `18.0`.

  Two settings that draw the same data have equal descriptions; any knob that is turned shows.

  Args:
    part: a dataclass of this module.
    prefix: put before the names.
  """
  out = {}
  for field in dataclasses.fields(part):
    name, value = prefix + field.name, getattr(part, field.name)
    if dataclasses.is_dataclass(value):
      out[name] = type(value).__name__
      out |= describe(value, f"{name}.")
    else:
      number = isinstance(value, int | float) and not isinstance(value, bool)
      out[name] = repr(float(value) if number else value)
  return out
