"""Named distributions: everything about the synthetic faces that can be turned.

Angles are degrees, lengths on the picture are shares of the eye distance or pixels at 112 x 112.
The values are judgements (J of the data set's README) unless a source is named.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Normal:
  """A normal distribution, held between two bounds; several means are of as many values."""

  mean: float | tuple[float, ...]
  sd: float
  low: float = -np.inf
  high: float = np.inf

  def draw(self, rng: np.random.Generator, size: int | None = None) -> np.ndarray:
    """Draws one value, or `size` values."""
    drawn = rng.normal(self.mean, self.sd, size)
    if isinstance(drawn, float):  # np.clip takes ten times as long
      return np.float64(min(max(drawn, self.low), self.high))
    return np.clip(drawn, self.low, self.high)


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
    shift: jitter of its place, to the right and down, in eye distances.
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
    mode: "natural", "strong", "posed" or "independent".
    ambiguity: share of faces that keep whatever units were drawn, see `label_model.draw`.
    prior: weight of each class of `label_model.CLASSES`; 0 leaves a class out of the data set.
      None: the mode's.
    walk: whether a person's pictures (in clips: the patterns of a clip) go through all classes in
      turn, in equal shares, instead of drawing each from the prior.
  """

  mode: str = "natural"
  ambiguity: float = 0.25
  prior: tuple[float, ...] | None = None
  walk: bool = False


@dataclasses.dataclass(frozen=True)
class Eyewear:
  """What glasses look like. Lengths are shares of the eye distance, 63 millimetres.

  Attributes:
    width: of a lens.
    height: of a lens.
    squareness: 2 for round lenses, more for rectangular ones.
    lift: how far the outer ends are raised.
    thickness: of the rims, from wire to horn.
    tint: share of the light that clear lenses take.
    dark_rate: share of glasses that are dark.
    dark_tint: share of the light that dark lenses take.
    reflection: strength of what the lenses mirror.
    streak: direction of that, in degrees.
  """

  width: Uniform = Uniform(0.72, 0.9)
  height: Uniform = Uniform(0.42, 0.68)
  squareness: Uniform = Uniform(2, 4.5)
  lift: Uniform = Uniform(0, 0.08)
  thickness: LogUniform = LogUniform(0.022, 0.09)
  tint: Uniform = Uniform(0.02, 0.15)
  dark_rate: float = 0.2
  dark_tint: Uniform = Uniform(0.75, 0.97)
  reflection: Uniform = Uniform(0, 0.35)
  streak: Uniform = Uniform(20, 70)


@dataclasses.dataclass(frozen=True)
class Fringe:
  """What hair over an eye looks like. Lengths are shares of the eye distance.

  Attributes:
    width: of the lock at its end.
    reach: how far below the eye it ends.
    density: opacity of its strands.
  """

  width: Uniform = Uniform(0.5, 1.0)
  reach: Uniform = Uniform(0.25, 1.1)
  density: Uniform = Uniform(0.75, 1.0)


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
    glasses: probability of glasses.
    eyewear: what they look like.
    lock: probability of hair over an eye, of those who have hair.
    fringe: what it looks like.
  """

  hand_often: float = 0.0
  hand_seldom: float = 0.0
  mouth_angle: Uniform = Uniform(5, 50)
  cheek_angle: Uniform = Uniform(55, 85)
  spread: Uniform = Uniform(-1, 8)
  curl: Uniform = Uniform(0, 1)
  glasses: float = 0.0
  eyewear: Eyewear = Eyewear()
  lock: float = 0.0
  fringe: Fringe = Fringe()


HANDS = Occluders(hand_often=0.3, hand_seldom=0.05)
OCCLUDED = dataclasses.replace(HANDS, glasses=0.1, lock=0.05)


@dataclasses.dataclass(frozen=True)
class Spoof:
  """Faces that are only shown: on paper, on a screen, as a mask. None, unless a probability is.

  Attributes:
    print: probability of a photograph on paper.
    screen: of a screen.
    cut_out: of a photograph cut out along the face, or with holes for the eyes.
    margin: where the edge of the thing lies, pixels from the picture's; less than 0 is outside.
    tilt: of the edge, degrees.
    bend: of paper: largest shift of what it shows, pixels.
    halftone: contrast of the printed dots.
    print_pitch: pixels per dot.
    moire: contrast of the fringes on a screen.
    screen_pitch: pixels per screen pixel; near 1 the fringes are wide.
    wash: how much paler than the original.
    glare: light of a lamp that the surface mirrors.
    holes: share of cut-outs that are whole sheets with holes for the eyes.
  """

  print: float = 0.0
  screen: float = 0.0
  cut_out: float = 0.0
  margin: Normal = Normal(1, 5, -8, 12)
  tilt: Normal = Normal(0, 4, -10, 10)
  bend: Uniform = Uniform(-2.5, 2.5)
  halftone: Uniform = Uniform(0.03, 0.14)
  print_pitch: Uniform = Uniform(2.1, 3.2)
  moire: Uniform = Uniform(0.06, 0.25)
  screen_pitch: Uniform = Uniform(0.86, 1.16)
  wash: Uniform = Uniform(0.2, 0.9)
  glare: Uniform = Uniform(0, 0.5)
  holes: float = 0.5


SPOOFS = Spoof(print=0.15, screen=0.15, cut_out=0.1)


@dataclasses.dataclass(frozen=True)
class Clips:
  """Pictures that follow each other in time, see `clips`. None, unless `frames` is raised.

  Attributes:
    frames: pictures per clip; a person's pictures are one clip after another. 0: no clips.
    rate: pictures per second.
    hold: seconds that a pattern is held once it is there.
    onset: seconds in which units rise.
    offset: seconds in which units fall.
    speech: openings of the lips per second in patterns that talk.
    duty: share of the time that they are open then.
    blink: seconds from one blink to the next.
    blink_length: seconds that a blink lasts.
    sway: how far the head wanders, degrees (standard deviation).
    glance: how far the eyes wander, degrees (standard deviation).
  """

  frames: int = 0
  rate: float = 8.0
  hold: Uniform = Uniform(1, 4)
  onset: Uniform = Uniform(0.3, 0.7)
  offset: Uniform = Uniform(0.5, 1.5)
  speech: Uniform = Uniform(3, 6)
  duty: float = 0.6
  blink: Uniform = Uniform(3, 5)
  blink_length: float = 0.2
  sway: float = 3.0
  glance: float = 2.5


@dataclasses.dataclass(frozen=True)
class Knobs:
  """All of it.

  Attributes:
    labels: what is shown.
    person: who is shown.
    view: how the face is seen and lit.
    camera: what goes wrong.
    occluders: what stands before the face.
    spoof: whether the face is only shown.
    clips: whether pictures follow each other in time.
  """

  labels: Labels = Labels()
  person: Person = Person()
  view: View = View()
  camera: Camera = Camera()
  occluders: Occluders = Occluders()
  spoof: Spoof = Spoof()
  clips: Clips = Clips()


# The six basic expressions alike, without and with neutral.
SIX = (0, 1, 1, 1, 1, 1, 1, 0)
SEVEN = (1, 1, 1, 1, 1, 1, 1, 0)
# Counts of the synthetic training images of ABAW4 (Kollias, 2022, arXiv:2207.01138).
LSD_TRAIN = (0, 18286, 15150, 10923, 73285, 144631, 14976, 0)
# How FER+ looks: grey, 48 pixels across, cropped by a face detector without alignment, closer than
# the template and higher. Measured on 3,960 of its training images: the template was fitted to the
# eyes, nose tip and mouth corners that a detector of landmarks (MediaPipe 0.10's face mesh) found
# there and on renders whose knobs are known. Between the spread of the inner half and that of all:
# its tails are heavier than a normal distribution's.
FERPLUS_VIEW = View(
  yaw=Normal(0, 14, -45, 45),
  pitch=Normal(0, 12, -30, 30),
  roll=Normal(0, 8, -30, 30),
  key_to_fill=LogUniform(1, 10),
  ambient=Uniform(0.05, 0.4),
  turn=Normal(0, 9, -30, 30),
  zoom=Normal(1.18, 0.18, 0.75, 1.7),
  shift=Normal((0.0, -0.19), 0.15, -0.8, 0.6),
)
# Blur, noise and compression: renders have the spectrum of its images to about 1.1 dB, up to the
# limit of 48 pixels. Their contrast stays lower (standard deviation of the pixels 39 of 255, there
# 52).
FERPLUS_CAMERA = Camera(
  blur=Uniform(0, 0.8),
  noise=Uniform(0, 0.02),
  exposure=Uniform(-1, 0.7),
  gamma=Uniform(0.8, 1.6),
  grey_rate=1.0,
  reduced_rate=1.0,
  resolution=Uniform(48, 48),
  jpeg=Uniform(60, 95),
)


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
