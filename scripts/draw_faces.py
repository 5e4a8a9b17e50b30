"""Draws contact sheets of the synthetic faces as PNG files, to look at.

  python scripts/draw_faces.py --output=sheets                # all of them
  python scripts/draw_faces.py --output=sheets --sheets=units,strong --seed=1
  python scripts/draw_faces.py --output=sheets --sheets=random --key=key.txt

  units        every action unit alone at 0, .5 and 1 on three heads
  prototypes   each expression at its prototype, ten people
  strong       each expression as the mode `strong` draws it, ten people; `natural` likewise
  random       40 faces as the mode `strong` draws them, as the data set frames, lights and spoils
               them; `random_natural` likewise
  readme       one narrow picture of all of it

With a key, the random faces can be named before their labels are looked at.
"""

import argparse
import pathlib
from collections.abc import Sequence

import cv2
import numpy as np
import simplejpeg

from tfds_builders.synthetic_faces import camera, knobs, label_model, renderer
from tfds_builders.synthetic_faces import person as people
from tfds_builders.synthetic_faces import pose as poses

SHEETS = ("units", "prototypes", "strong", "natural", "random", "random_natural", "readme")
VERSION, SPLIT = "1.0.0", "sheet"
MARGIN = 14  # pixels above a face, for its title
WIDE = 96  # pixels left of a row, for its name
# How the head is lit and seen where only the expression is of interest.
LIGHT = np.array([30.0, 30.0, 3.0, 0.32, 5500.0])
BACKGROUND = (0.32, 0.34, 0.36)


def main() -> None:
  """Draws the sheets."""
  options = parse()
  seed = options.seed
  options.output.mkdir(parents=True, exist_ok=True)
  draw = {
    "units": lambda: units_sheet(seed),
    "prototypes": lambda: prototypes_sheet(seed),
    "strong": lambda: classes_sheet(seed, "strong"),
    "natural": lambda: classes_sheet(seed, "natural"),
    "random": lambda: random_sheet(seed, "strong", options.faces, options.key),
    "random_natural": lambda: random_sheet(seed, "natural", options.faces, options.key),
    "readme": lambda: readme_sheet(seed),
  }
  for name in options.sheets.split(","):
    sheet, path = draw[name](), options.output / f"{name}.png"
    cv2.imwrite(str(path), np.ascontiguousarray(sheet[..., ::-1]), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    print(f"{path}: {sheet.shape[1]} x {sheet.shape[0]}, {path.stat().st_size / 1000:.0f} kB")


def parse() -> argparse.Namespace:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--output", type=pathlib.Path, default="sheets", help="folder of the sheets")
  parser.add_argument("--sheets", default=",".join(SHEETS), help="which sheets, see above")
  parser.add_argument("--seed", type=int, default=0, help="other faces with every seed")
  parser.add_argument("--faces", type=int, default=40, help="how many random faces")
  parser.add_argument(
    "--key", type=pathlib.Path, help="number the random faces; their labels go to this file"
  )
  return parser.parse_args()


def someone(seed: int, number: int) -> people.Person:
  """A person; those of two seeds differ."""
  return renderer.draw_person(VERSION, seed, SPLIT, number, knobs.Person())


def strengths(**units: float) -> np.ndarray:
  """Intensities [21, 2] from au12=0.5 and so on, the same on both sides."""
  intensity = np.zeros((len(label_model.UNITS), 2))
  for name, value in units.items():
    intensity[label_model.UNITS.index(int(name.removeprefix("au")))] = value
  return intensity


def portrait(
  person: people.Person,
  intensity: np.ndarray,
  head: Sequence[float] = (0, 0, 0),
  zoom: float = 1,
  shift: float = 0,
) -> np.ndarray:
  """A person with units, in plain light, near the camera's axis: [112, 112, 3] uint8."""
  shape = (renderer.SIZE, renderer.SIZE, 3)
  scene = renderer.Scene(
    intensity=intensity,
    framing=poses.Framing(np.array(head, float), 60.0, zoom=zoom, shift=np.array([0, shift])),
    eyes=np.zeros(2),
    light=LIGHT,
    background=np.broadcast_to(np.array(BACKGROUND, np.float32), shape),
  )
  return np.round(255 * camera.develop(renderer.render(person, scene).light)).astype(np.uint8)


def prototype(expression: str) -> np.ndarray:
  """Intensities [21, 2] of a class's most frequent prototype: .8 of the units it mostly has."""
  patterns = [p for p in label_model.PATTERNS if p.expression == expression]
  pattern = max(patterns, key=lambda p: p.weight["strong"])
  present = np.array([[pattern.units.get(unit, 0) >= 0.5 for unit in label_model.UNITS]])
  shown = label_model.apply_rules(present, np.random.default_rng(0))[0]
  return np.repeat(0.8 * shown[:, None], 2, 1)


def drawn(
  rng: np.random.Generator, expression: str, mode: str
) -> tuple[np.ndarray, label_model.Drawn]:
  """Intensities [21, 2] as a mode draws them for a class, none of them ambiguous."""
  prior = tuple(float(name == expression) for name in label_model.CLASSES)
  face = label_model.draw(rng, knobs.Labels(mode, ambiguity=0.0, prior=prior))
  return label_model.draw_intensity(rng, face), face


def units_sheet(seed: int, units: Sequence[int] = label_model.UNITS, heads: int = 3) -> np.ndarray:
  """Every unit alone at 0, .5 and 1."""
  columns = [(someone(seed, head), level) for head in range(heads) for level in (0, 0.5, 1)]
  rows = [
    [portrait(person, strengths(**{f"au{unit}": level})) for person, level in columns]
    for unit in sorted(units)
  ]
  titles = [[f"{level:g}" for _, level in columns]] * len(rows)
  return grid(rows, [f"AU {unit}" for unit in sorted(units)], titles)


def prototypes_sheet(seed: int, number: int = 10) -> np.ndarray:
  """Each expression's prototype on the same people."""
  names = label_model.CLASSES[:7]
  rows = [[portrait(someone(seed, i), prototype(name)) for i in range(number)] for name in names]
  return grid(rows, names, [[units_of(prototype(name))] * number for name in names])


def classes_sheet(seed: int, mode: str, number: int = 10) -> np.ndarray:
  """Each expression as a mode draws it, on the same people."""
  rng = np.random.default_rng(seed)
  rows, titles = [], []
  for name in label_model.CLASSES:
    found = [drawn(rng, name, mode) for _ in range(number)]
    rows.append([portrait(someone(seed, i), intensity) for i, (intensity, _) in enumerate(found)])
    titles.append([units_of(intensity) for intensity, _ in found])
  return grid(rows, label_model.CLASSES, titles)


def random_sheet(
  seed: int, mode: str, number: int, key: pathlib.Path | None = None, columns: int = 8
) -> np.ndarray:
  """Faces as the data set has them; their classes above them, or all about them in a file."""
  setting = knobs.Knobs(labels=knobs.Labels(mode))
  faces = [renderer.render_face(VERSION, seed, SPLIT, i, 0, setting) for i in range(number)]
  pictures = [simplejpeg.decode_jpeg(face.jpeg) for face in faces]
  titles = [label_model.CLASSES[face.expression] for face in faces]
  if key:
    titles = [str(i + 1) for i in range(number)]
    told = [f"{i + 1}\t{f.pattern}\t{units_of(f.intensity)}" for i, f in enumerate(faces)]
    key.write_text("\n".join(told) + "\n")
  starts = range(0, number, columns)
  return grid(
    [pictures[i : i + columns] for i in starts], None, [titles[i : i + columns] for i in starts]
  )


def readme_sheet(seed: int, width: int = 10) -> np.ndarray:
  """Random faces of the default mode, prototypes of the expressions, and units on two heads."""
  faces = [renderer.render_face(VERSION, seed, SPLIT, i, 0, knobs.Knobs()) for i in range(width)]
  rows = [[simplejpeg.decode_jpeg(face.jpeg) for face in faces]]
  titles = [[label_model.CLASSES[face.expression] for face in faces]]
  names = [label_model.CLASSES[(i + 1) % 7] for i in range(width)]
  turns = 18 * np.sin(2.4 * np.arange(width))
  rows.append(
    [
      portrait(someone(seed, width + i), prototype(name), head=(turn, 0, 0))
      for i, (name, turn) in enumerate(zip(names, turns, strict=True))
    ]
  )
  titles.append(names)
  units = sorted(set(label_model.UNITS) - {28})
  for person, half in ((3, units[:width]), (1, units[width:])):
    rows.append([portrait(someone(seed, person), strengths(**{f"au{u}": 1})) for u in half])
    titles.append([f"AU {unit}" for unit in half])
  # Fewer colours: half the bytes.
  return grid(rows, None, titles) // 5 * 5


def units_of(intensity: np.ndarray) -> str:
  """The units that are there, as text."""
  there = intensity.max(1) >= label_model.PRESENT
  return "+".join(str(unit) for unit in sorted(np.array(label_model.UNITS)[there].tolist()))


def grid(
  rows: Sequence[Sequence[np.ndarray]],
  names: Sequence[str] | None,
  titles: Sequence[Sequence[str]],
) -> np.ndarray:
  """Puts pictures of equal size side by side.

  Args:
    rows: pictures, [size, size, 3] uint8.
    names: of the rows; None for no such column.
    titles: one for each picture.

  Returns:
    The sheet, [height, width, 3] uint8.
  """
  size, left = rows[0][0].shape[0], WIDE if names else 0
  columns = max(len(row) for row in rows)
  sheet = np.full((len(rows) * (size + MARGIN), left + columns * size, 3), 255, np.uint8)
  for r, row in enumerate(rows):
    top = r * (size + MARGIN)
    if names:
      _write(sheet, names[r], 4, top + MARGIN + size // 2, 0.42)
    for c, picture in enumerate(row):
      x = left + c * size
      sheet[top + MARGIN : top + MARGIN + size, x : x + size] = picture
      _write(sheet, titles[r][c], x + 3, top + MARGIN - 4, 0.33, size - 4)
  return sheet


def _write(
  sheet: np.ndarray, text: str, x: int, y: int, scale: float, room: int | None = None
) -> None:
  """Writes a line of text, smaller where there is little room for it."""
  font = cv2.FONT_HERSHEY_SIMPLEX
  width = cv2.getTextSize(text, font, scale, 1)[0][0]
  if room and width > room:
    scale *= room / width
  cv2.putText(sheet, text, (x, y), font, scale, (0, 0, 0), 1, cv2.LINE_AA)


if __name__ == "__main__":
  main()
