"""AffectNet, RAF-DB, ExpW and RAF-AU as they are given out, made up from a seed, and the truth.

Each face carries its own number in its pixels, as in `affwild_tree`. Lists are written by code of
its own, not by what reads them.
"""

import dataclasses
import io
import random
from pathlib import Path

import cv2
import numpy as np
from affwild_tree import BITS, draw, write_files

AFFECTNET = ["neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt"]
RAF = ["surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral"]
EXPW = ["anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral"]
HEADER = (
  "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,"
  "arousal"
)


@dataclasses.dataclass
class Face:
  """A face of a list. None = unlabelled.

  Attributes:
    image: path that a record should give.
    number: in its pixels.
    line: of the list; 0: there is none.
    gone: why it is left out: "", "missing", "code", "unreadable" or "box".
    box: left, top, right, bottom of what should be cut out of the photograph.
  """

  image: str
  number: int
  line: int = 0
  expression: str | None = None
  va: tuple[float | None, float | None] = (None, None)
  units: frozenset[int] | None = None
  code: str = ""
  face: int = 0
  confidence: float = 0.0
  gone: str = ""
  box: tuple[int, int, int, int] | None = None


def pixels(number: int, rng: np.random.Generator, height: int, width: int) -> np.ndarray:
  """A drawn face as [height, width, 3]."""
  return cv2.imdecode(np.frombuffer(draw(number, rng, height, width), np.uint8), cv2.IMREAD_COLOR)


def encode(image: np.ndarray, suffix: str) -> bytes:
  """The bytes of an image file of that kind."""
  return cv2.imencode(suffix, image)[1].tobytes()


def place(
  photograph: np.ndarray, number: int, rng: np.random.Generator, kind: int, top: int
) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
  """Puts a face into a photograph, at its left or right side.

  Returns:
    The box that a list gives, which may reach out of the photograph, and what of it is inside.
  """
  height, width = (int(x) for x in rng.integers(66, 90, 2))
  right_side = photograph.shape[1] - width
  left = {0: 7, 1: right_side, 2: 0}[kind]
  photograph[top : top + height, left : left + width] = pixels(number, rng, height, width)
  inside = (left, top, left + width, top + height)
  out = {0: (0, 0), 1: (0, 12), 2: (-9, 0)}[kind]
  return (left + out[0], top, left + width + out[1], top + height), inside


def write_affectnet_2017(
  folder: Path, seed: int = 0, header: bool = True, newline: str = "\n", outer: str = ""
) -> dict[str, list[Face]]:
  """Writes the release of 2017; returns split -> faces in the order of its list.

  Args:
    folder: where.
    seed: of all that is drawn.
    header: whether `validation.csv` has one.
    newline: between lines.
    outer: folder in it in which lists and images lie.
  """
  shuffle, rng = random.Random(seed), np.random.default_rng(seed)
  files: dict[Path, bytes] = {}
  truth = {}
  for split, name in (("train", "training.csv"), ("validation", "validation.csv")):
    first = [HEADER] if header or split == "train" else []
    faces, lines = [], list(first)
    for k in range(26):
      suffix = shuffle.choice([".jpg", ".JPG", ".jpeg", ".png"])
      image = f"{shuffle.randrange(3)}/{seed}{split[0]}{k:02d}ab{suffix}"
      face = Face(image, shuffle.getrandbits(BITS), len(lines) + 1)
      line, content = _affectnet_row(face, k, shuffle, rng)
      faces.append(face)
      lines.append(line)
      if face.gone != "missing":
        files[folder / outer / "Manually_Annotated_Images" / face.image] = content
    files[folder / outer / name] = newline.join([*lines, ""]).encode()
    truth[split] = faces
  write_files(files, shuffle)
  return truth


def _affectnet_row(
  face: Face, k: int, shuffle: random.Random, rng: np.random.Generator
) -> tuple[str, bytes]:
  """The line of a face and its file, every quirk by turns."""
  photograph = cv2.resize(rng.integers(0, 256, (6, 5, 3), np.uint8), (190, 140 + k))
  box, inside = place(photograph, face.number, rng, k % 3, shuffle.randrange(40))
  face.box = inside
  content = encode(photograph, ".png" if k % 4 == 1 or face.image.endswith("png") else ".jpg")
  face.gone = {5: "missing", 9: "code", 13: "unreadable", 17: "box", 18: "code", 19: "unreadable",
               20: "box", 21: "code", 22: "box"}.get(k, "")  # fmt: skip
  expression = {9: 8, 18: 9, 21: 10}.get(k, k % 8)
  values = [round(shuffle.uniform(-1, 1), 6) for _ in range(2)]
  texts = [repr(v) for v in values]
  if k % 5 == 1:
    values, texts = [None, values[1]], [shuffle.choice(["-2", "-2.0"]), texts[1]]
  if k % 5 == 2:
    values, texts = [None, None], ["-2", "-2"]
  if k == 13:  # what it is called does not matter
    content = encode(photograph, shuffle.choice([".bmp", ".tif"]))
  if k == 19:
    content = encode(photograph, ".jpg")[:-300]
  left, top, right, bottom = box
  sides = [left, top, right - left, bottom - top]
  if k == 17:
    sides[0] = 200
  if k == 20:
    sides[2] = -1
  if k == 22 or expression == 10:
    sides = ["NULL"] * 4
  landmarks = ";".join(f"{x:.2f}" for x in rng.uniform(0, 200, 6))
  if k % 2:
    landmarks = f'"{landmarks}"'
  if face.gone != "code":
    face.expression, face.va = AFFECTNET[expression], tuple(values)
  else:
    texts = ["-2", "NULL"] if expression == 10 else texts  # what is left out is not read
  cells = [face.image, *sides, landmarks, expression, *texts]
  return ",".join(map(str, cells)), content


def write_affectnet_2021(folder: Path, seed: int = 0) -> dict[str, list[Face]]:
  """Writes the release of 2021; returns split -> faces in the order of their numbers."""
  shuffle, rng = random.Random(seed), np.random.default_rng(seed)
  files: dict[Path, bytes] = {}
  truth = {}
  for split, inner in (("train", "train_set"), ("validation", "val_set")):
    truth[split] = []
    # The same names in both; as text 10 comes before 9.
    for name in sorted(shuffle.sample(range(130), 24)):
      face = Face(f"{name}.jpg", shuffle.getrandbits(BITS))
      k = len(truth[split])
      face.gone = {4: "missing", 7: "code"}.get(k, "")
      expression = 9 if face.gone == "code" else shuffle.randrange(8)
      va = [shuffle.choice([None, round(shuffle.uniform(-1, 1), 5)]) for _ in range(2)]
      if face.gone != "code":
        face.expression, face.va = AFFECTNET[expression], tuple(va)
      values = {"exp": expression} | {
        kind: -2 if value is None else value for kind, value in zip(("val", "aro"), va, strict=True)
      }
      for kind, value in values.items():
        files[folder / inner / "annotations" / f"{name}_{kind}.npy"] = npy(
          shuffle.choice([str(value), float(value), np.float64(value), [float(value)]])
        )
      files[folder / inner / "annotations" / f"{name}_lnd.npy"] = npy(rng.uniform(0, 200, 136))
      if face.gone != "missing":
        files[folder / inner / "images" / face.image] = draw(face.number, rng, 96, 96)
      truth[split].append(face)
  write_files(files, shuffle)
  return truth


def npy(value: object) -> bytes:
  """What `np.save` writes."""
  file = io.BytesIO()
  np.save(file, np.array(value))
  return file.getvalue()


def write_raf_db(folder: Path, seed: int = 0, newline: str = "\n") -> dict[str, list[Face]]:
  """Writes RAF-DB; returns split -> faces in the order of the list."""
  shuffle, rng = random.Random(seed), np.random.default_rng(seed)
  files, lines, truth = {}, [], {"train": [], "test": []}
  names = [f"train_{k:05d}" for k in range(1, 22)] + [f"test_{k:04d}" for k in range(1, 12)]
  shuffle.shuffle(names)
  for name in names:
    code = shuffle.randint(1, 7)
    lines.append(f"{name}.jpg {code}")
    face = Face(f"{name}_aligned.jpg", shuffle.getrandbits(BITS), len(lines), RAF[code - 1])
    face.gone = "missing" if name in ("train_00003", "test_0002") else ""
    truth[name.partition("_")[0]].append(face)
    if not face.gone:
      files[folder / "Image/aligned" / face.image] = draw(face.number, rng, 100, 100)
  files[folder / "EmoLabel/list_patition_label.txt"] = newline.join([*lines, ""]).encode()
  write_files(files, shuffle)
  return truth


def write_expw(
  folder: Path, seed: int = 0, images: str = "image/origin", photographs: int = 40
) -> list[Face]:
  """Writes ExpW, up to three faces in a photograph; returns the faces in the order of the list."""
  shuffle, rng = random.Random(seed), np.random.default_rng(seed)
  files: dict[Path, bytes] = {}
  rows: list[tuple[str, Face]] = []
  for k in range(photographs):
    image = f"{shuffle.choice(['amazed', 'angry_boss', 'happy-child'])}_{k}.jpg"
    photograph = cv2.resize(rng.integers(0, 256, (6, 5, 3), np.uint8), (200, 300))
    gone = {3: "missing", 11: "unreadable"}.get(k, "")
    for face_id in range(1 + k % 3):
      face = Face(image, shuffle.getrandbits(BITS), face=face_id, gone=gone)
      (left, top, right, bottom), face.box = place(
        photograph, face.number, rng, shuffle.randrange(3), 100 * face_id + shuffle.randrange(9)
      )
      if k == 17:
        left, right, face.gone = right, left, "box"
      face.confidence, code = round(shuffle.uniform(0, 100), 4), shuffle.randrange(7)
      face.expression = EXPW[code]
      row = [image, face_id, top, left, right, bottom, face.confidence, code]
      rows.append((" ".join(map(str, row)), face))
    if gone != "missing":
      content = encode(photograph, ".jpg")
      files[folder / images / image] = content[:-300] if gone else content
  shuffle.shuffle(rows)
  lines = []
  for line, face in rows:
    if len(lines) % 10 == 4:
      lines.append("")  # as in the release
    lines.append(line)
    face.line = len(lines)
  files[folder / "label/label.lst"] = "\n".join([*lines, ""]).encode()
  write_files(files, shuffle)
  return [face for _, face in rows]


def write_raf_au(
  folder: Path, seed: int = 0, suffix: str = "_aligned.jpg", images: str = "aligned"
) -> list[Face]:
  """Writes RAF-AU; returns the faces in the order of the list."""
  shuffle, rng = random.Random(seed), np.random.default_rng(seed)
  files: dict[Path, bytes] = {}
  lines, faces = [], []
  for k in shuffle.sample(range(1, 5000), 45):
    units = shuffle.sample([1, 2, 4, 6, 7, 10, 12, 14, 25, 26], shuffle.randint(0, 4))
    sides = [shuffle.choice([("",), ("L",), ("L", "R"), ("R",), ("T",)]) for _ in units]
    parts = [side + str(unit) for unit, of in zip(units, sides, strict=True) for side in of]
    face = Face(f"{k:04d}{suffix}", shuffle.getrandbits(BITS), len(lines) + 1)
    face.units, face.code = frozenset(units), "+".join(parts) or "null"
    face.gone = "missing" if len(lines) == 8 else ""
    lines.append(f"{k:04d}.jpg {face.code}" + " " * shuffle.randrange(2))
    faces.append(face)
    if not face.gone:
      size = (int(x) for x in rng.integers(64, 120, 2))
      files[folder / images / face.image] = draw(face.number, rng, *size)
  files[folder / "RAFAU_label.txt"] = "\n".join([*lines, ""]).encode()
  write_files(files, shuffle)
  return faces
