"""Compiled kernels of the face renderer: morphs, normals, a z-buffer, shading, translucent layers.

Plain loops over arrays, compiled by Numba on first use and kept in its cache. No `fastmath`, no
threads inside a kernel: the same arguments give the same bits, whoever calls and in what order.

Screen coordinates are [vertices, 3] float32: x to the right and y down in pixels, and the inverse
distance from the camera, which is linear across a triangle in perspective and grows towards us.
"""

import numba
import numpy as np

# What a triangle shows; how the kernels look it up.
SKIN, MOUTH, EYE, TEETH, TONGUE, UPPER_LASH, LOWER_LASH, CLOTH = range(8)

# Single precision all the way: a plain 0.5 would turn an expression into double precision.
ZERO, HALF, ONE = np.float32(0), np.float32(0.5), np.float32(1)
# A pixel that translucent things cover by more than this is full.
FULL = np.float32(0.996)

_compile = numba.njit(cache=True, nogil=True, error_model="numpy")


@_compile
def add_targets(
  vertices: np.ndarray,
  starts: np.ndarray,
  indices: np.ndarray,
  deltas: np.ndarray,
  chosen: np.ndarray,
  weights: np.ndarray,
) -> None:
  """Adds weighted sparse morph targets to a mesh, in place.

  Args:
    vertices: [vertices, 3] float32 positions.
    starts: [targets + 1] where each target's rows begin.
    indices: [rows] which vertex a row moves.
    deltas: [rows, 3] float32 by how much.
    chosen: [k] numbers of the targets to add.
    weights: [k] their weights.
  """
  for k in range(chosen.shape[0]):
    weight = np.float32(weights[k])
    if weight == 0:
      continue
    for row in range(starts[chosen[k]], starts[chosen[k] + 1]):
      vertex = indices[row]
      for axis in range(3):
        vertices[vertex, axis] += weight * deltas[row, axis]


@_compile
def vertex_normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
  """Averages the triangles' normals around each vertex, by area: [vertices, 3] float32."""
  normals = np.zeros_like(vertices)
  for t in range(triangles.shape[0]):
    a, b, c = triangles[t, 0], triangles[t, 1], triangles[t, 2]
    ux = vertices[b, 0] - vertices[a, 0]
    uy = vertices[b, 1] - vertices[a, 1]
    uz = vertices[b, 2] - vertices[a, 2]
    vx = vertices[c, 0] - vertices[a, 0]
    vy = vertices[c, 1] - vertices[a, 1]
    vz = vertices[c, 2] - vertices[a, 2]
    nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
    for v in (a, b, c):
      normals[v, 0] += nx
      normals[v, 1] += ny
      normals[v, 2] += nz
  for v in range(vertices.shape[0]):
    length = np.sqrt(normals[v, 0] ** 2 + normals[v, 1] ** 2 + normals[v, 2] ** 2)
    if length > 0:
      for axis in range(3):
        normals[v, axis] /= length
  return normals


@_compile
def bind_proxy(
  vertices: np.ndarray, reference: np.ndarray, weights: np.ndarray, offsets: np.ndarray
) -> np.ndarray:
  """Places a mesh that hangs on another: three vertices, their weights and an offset each."""
  placed = offsets.copy()
  for i in range(reference.shape[0]):
    for k in range(3):
      for axis in range(3):
        placed[i, axis] += weights[i, k] * vertices[reference[i, k], axis]
  return placed


@_compile
def reach(vertices: np.ndarray, points: np.ndarray, radius: float) -> np.ndarray:
  """How far forward a mesh reaches at places of the frontal plane.

  Args:
    vertices: [vertices, 3] float32.
    points: [points, 2] float32.
    radius: of the neighbourhood that counts.

  Returns:
    [points] float32 largest z of a vertex within `radius`; of the nearest where none is so near.
  """
  found = np.zeros(points.shape[0], np.float32)
  for i in range(points.shape[0]):
    nearest, highest = np.float32(1e9), np.float32(-1e9)
    for j in range(vertices.shape[0]):
      x, y = vertices[j, 0] - points[i, 0], vertices[j, 1] - points[i, 1]
      square = x * x + y * y
      if square < nearest:
        nearest = square
        found[i] = vertices[j, 2]
      if square < radius * radius:
        highest = max(highest, vertices[j, 2])
    found[i] = max(found[i], highest)
  return found


@_compile
def project(
  vertices: np.ndarray,
  turn: np.ndarray,
  pivot: np.ndarray,
  origin: np.ndarray,
  distance: float,
  fit: complex,
  offset: complex,
) -> tuple[np.ndarray, np.ndarray]:
  """Turns a head about a pivot and projects it.

  Args:
    vertices: [vertices, 3] float32 in the head's frame.
    turn: [3, 3] rotation.
    pivot: [3] what stays in place.
    origin: [3] point of the head's frame that the camera stands in front of.
    distance: of the camera from there.
    fit: scale and rotation on the screen, as a complex number.
    offset: shift on the screen.

  Returns:
    [vertices, 3] float32 in the camera's axes: right, up, towards it; and screen coordinates.
  """
  placed, screen = np.empty_like(vertices), np.empty_like(vertices)
  for i in range(vertices.shape[0]):
    for axis in range(3):
      value = pivot[axis] - origin[axis]
      for k in range(3):
        value += turn[axis, k] * (vertices[i, k] - pivot[k])
      placed[i, axis] = value
    near = 1 / (distance - placed[i, 2])
    flat = complex(placed[i, 0], -placed[i, 1]) * near * fit + offset
    screen[i, 0], screen[i, 1], screen[i, 2] = flat.real, flat.imag, near
  return placed, screen


@_compile
def bounds(
  screen: np.ndarray, a: int, b: int, c: int, size: int, area: float
) -> tuple[int, int, int, int, float, float, float, float]:
  """Sets up a triangle for drawing.

  Args:
    screen: [vertices, 3] float32, see the module.
    a: row of its first corner.
    b: row of its second.
    c: row of its third.
    size: width and height of the picture in pixels.
    area: twice its signed area, not 0.

  Returns:
    The first and one past the last column, and row, whose centres its box holds; how the screen
    weights of its second and of its third corner grow per pixel to the right and down.
  """
  ax, ay, bx, by = screen[a, 0], screen[a, 1], screen[b, 0], screen[b, 1]
  cx, cy = screen[c, 0], screen[c, 1]
  left = max(int(np.ceil(min(ax, bx, cx) - HALF)), 0)
  right = min(int(np.floor(max(ax, bx, cx) - HALF)) + 1, size)
  top = max(int(np.ceil(min(ay, by, cy) - HALF)), 0)
  bottom = min(int(np.floor(max(ay, by, cy) - HALF)) + 1, size)
  inverse = 1 / area
  bx_step, by_step = (cy - ay) * inverse, (ax - cx) * inverse
  cx_step, cy_step = (ay - by) * inverse, (bx - ax) * inverse
  return left, right, top, bottom, bx_step, by_step, cx_step, cy_step


@_compile
def span(
  x: float, y: float, bx: float, by: float, cx: float, cy: float, left: int, right: int
) -> tuple[int, int, float, float]:
  """Finds the columns of a row that lie in a triangle.

  Args:
    x: from the triangle's first corner to the centre of column `left`.
    y: from there to the row's.
    bx: how the screen weight of the second corner grows from column to column.
    by: how from row to row.
    cx: how that of the third corner does.
    cy: likewise.
    left: first column of its box.
    right: one past the last.

  Returns:
    The first column and one past the last; the weights of the second and the third corner one
    column before the first.
  """
  wb, wc = x * bx + y * by, x * cx + y * cy
  low, high = 0.0, float(right - left - 1)
  for weight, step in ((wb, bx), (wc, cx), (1 - wb - wc, -bx - cx)):
    if step > 0:
      low = max(low, -weight / step)
    elif step < 0:
      high = min(high, -weight / step)
    elif weight < 0:
      return left, left, wb, wc
  # A centre on the edge of two triangles must not fall between them.
  first, last = int(np.ceil(low - 1e-9)), int(np.floor(high + 1e-9)) + 1
  return left + first, left + last, wb + (first - 1) * bx, wc + (first - 1) * cx


@_compile
def rasterise(
  screen: np.ndarray, triangles: np.ndarray, size: int, cull: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Finds the nearest triangle behind each pixel's centre.

  Args:
    screen: [vertices, 3] float32, see the module.
    triangles: [triangles, 3] int32.
    size: width and height of the picture in pixels.
    cull: whether to leave out triangles that show their back (y down: clockwise is front).

  Returns:
    [size, size] float32 inverse distance, 0 where nothing is; [size, size] int32 triangle, -1 where
    nothing is; [size, size, 2] float32 screen weights of the triangle's second and third corner.
  """
  depth = np.zeros((size, size), np.float32)
  shown = np.full((size, size), -1, np.int32)
  weights = np.zeros((size, size, 2), np.float32)
  for t in range(triangles.shape[0]):
    a, b, c = triangles[t, 0], triangles[t, 1], triangles[t, 2]
    area = twice_area(screen, a, b, c)
    if area == 0 or (cull and area > 0):
      continue
    left, right, top, bottom, bx, by, cx, cy = bounds(screen, a, b, c, size, area)
    za = screen[a, 2]
    zb, zc = screen[b, 2] - za, screen[c, 2] - za
    x = left + HALF - screen[a, 0]
    for row in range(top, bottom):
      y = row + HALF - screen[a, 1]
      first, last, wb, wc = span(x, y, bx, by, cx, cy, left, right)
      for column in range(first, last):
        wb, wc = wb + bx, wc + cx
        near = np.float32(za + wb * zb + wc * zc)
        if near > depth[row, column]:
          depth[row, column] = near
          shown[row, column] = t
          weights[row, column, 0] = wb
          weights[row, column, 1] = wc
  return depth, shown, weights


@_compile
def twice_area(screen: np.ndarray, a: int, b: int, c: int) -> float:
  """Twice the signed area of a triangle on the screen; negative where it shows its front."""
  ux, uy = screen[b, 0] - screen[a, 0], screen[b, 1] - screen[a, 1]
  vx, vy = screen[c, 0] - screen[a, 0], screen[c, 1] - screen[a, 1]
  return float(ux) * vy - float(uy) * vx


@_compile
def corners(triangles: np.ndarray, t: int) -> tuple[int, int, int]:
  """Rows of a triangle's corners, as numbers that are plainly not negative."""
  return np.uintp(triangles[t, 0]), np.uintp(triangles[t, 1]), np.uintp(triangles[t, 2])


@_compile
def corner(texture: np.ndarray, u: float, v: float) -> tuple[int, int, float, float]:
  """Where (u, v) in [0, 1] lies in a texture: row and column of a texel, shares of the next."""
  x = min(max(u * texture.shape[1] - HALF, ZERO), np.float32(texture.shape[1] - 1.001))
  y = min(max(v * texture.shape[0] - HALF, ZERO), np.float32(texture.shape[0] - 1.001))
  column, row = np.int32(x), np.int32(y)
  return np.uintp(row), np.uintp(column), np.float32(y - row), np.float32(x - column)


@_compile
def blend(texture: np.ndarray, row: int, column: int, fy: float, fx: float, channel: int) -> float:
  """Reads one channel of [height, width, channels], bilinear, at what `corner` found."""
  below, beside = row + np.uintp(1), column + np.uintp(1)
  upper = texture[row, column, channel]
  upper += (texture[row, beside, channel] - upper) * fx
  lower = texture[below, column, channel]
  lower += (texture[below, beside, channel] - lower) * fx
  return upper + (lower - upper) * fy


@_compile
def halfway(lights: np.ndarray) -> np.ndarray:
  """Directions that mirror each light to a viewer far in front (Blinn-Phong): [lights, 3]."""
  half = np.empty((lights.shape[0], 3), np.float32)
  for i in range(lights.shape[0]):
    x, y, z = lights[i, 0], lights[i, 1], lights[i, 2] + ONE
    length = np.sqrt(x * x + y * y + z * z) + np.float32(1e-6)
    half[i, 0], half[i, 1], half[i, 2] = x / length, y / length, z / length
  return half


@_compile
def highlight(
  nx: float, ny: float, nz: float, lights: np.ndarray, half: np.ndarray, doublings: int
) -> float:
  """Strength of the mirror-like spot of all lights, whose `halfway` directions are `half`.

  The exponent is 2 ** `doublings`: powers of two are cheap.
  """
  total = ZERO
  for i in range(lights.shape[0]):
    cosine = max(nx * half[i, 0] + ny * half[i, 1] + nz * half[i, 2], ZERO)
    for _ in range(doublings):
      cosine *= cosine
    total += cosine * lights[i, 4]
  return total


@_compile
def shade(
  picture: np.ndarray,
  cover: np.ndarray,
  shown: np.ndarray,
  hidden: np.ndarray,
  weights: np.ndarray,
  screen: np.ndarray,
  normals: np.ndarray,
  occlusion: np.ndarray,
  triangles: np.ndarray,
  uv: np.ndarray,
  part: np.ndarray,
  skin: np.ndarray,
  eye: np.ndarray,
  plain: np.ndarray,
  lights: np.ndarray,
  ambient: np.ndarray,
  gloss: float,
) -> None:
  """Colours every pixel of the opaque parts.

  Args:
    picture: [size, size, 3] float32, written: linear light.
    cover: [size, size] float32, written: 1 where a part is.
    shown: as `rasterise` returns it.
    hidden: [size, size] bool, pixels to leave out: something else will cover them.
    weights: as `rasterise` returns it.
    screen: [vertices, 3] float32.
    normals: [vertices, 3] float32 in the camera's frame: right, up, towards the camera.
    occlusion: [vertices] float32, share of the surroundings that a vertex sees, in [0, 1].
    triangles: [triangles, 3] int32.
    uv: [triangles, 3, 2] float32 texture coordinates in [0, 1]; of teeth: 0, and 1 at the crown, 0
      at the gum.
    part: [triangles] uint8, what a triangle is.
    skin: [height, width, 4] float32 albedo (linear) and gloss factor.
    eye: [height, width, 3] float32 albedo of the eyeball.
    plain: [parts, 3] float32 albedo of the parts without a texture.
    lights: [2, 6] float32, the main light and the fill: direction to it (3), red, green, blue.
    ambient: [3] float32 light from everywhere.
    gloss: strength of the skin's highlights.
  """
  half = halfway(lights)
  small = np.float32(1e-6)
  for row in range(shown.shape[0]):
    for column in range(shown.shape[1]):
      t = shown[row, column]
      if t < 0:
        continue
      cover[row, column] = 1
      if hidden[row, column]:
        continue
      t = np.uintp(t)  # an index that may be negative would be checked at each use
      a, b, c = corners(triangles, t)
      # Weights on the screen, times inverse distance, are weights on the surface.
      wb, wc = weights[row, column, 0], weights[row, column, 1]
      wa = (ONE - wb - wc) * screen[a, 2]
      wb, wc = wb * screen[b, 2], wc * screen[c, 2]
      inverse = ONE / (wa + wb + wc)
      wa, wb, wc = wa * inverse, wb * inverse, wc * inverse
      nx = wa * normals[a, 0] + wb * normals[b, 0] + wc * normals[c, 0]
      ny = wa * normals[a, 1] + wb * normals[b, 1] + wc * normals[c, 1]
      nz = wa * normals[a, 2] + wb * normals[b, 2] + wc * normals[c, 2]
      inverse = ONE / (np.sqrt(nx * nx + ny * ny + nz * nz) + small)
      nx, ny, nz = nx * inverse, ny * inverse, nz * inverse
      sky = wa * occlusion[a] + wb * occlusion[b] + wc * occlusion[c]
      u = wa * uv[t, 0, 0] + wb * uv[t, 1, 0] + wc * uv[t, 2, 0]
      v = wa * uv[t, 0, 1] + wb * uv[t, 1, 1] + wc * uv[t, 2, 1]
      kind = part[t]
      key = nx * lights[0, 0] + ny * lights[0, 1] + nz * lights[0, 2]
      fill = nx * lights[1, 0] + ny * lights[1, 1] + nz * lights[1, 2]
      # Direct light is blocked less than the sky is: crevices keep some of it.
      open_share = min(np.float32(0.35) + np.float32(0.9) * sky, ONE)
      spot, wrap, reddening = ZERO, np.float32(0.2), ZERO
      red, green, blue = plain[kind, 0], plain[kind, 1], plain[kind, 2]
      if kind == SKIN:
        y, x, fy, fx = corner(skin, u, v)
        red, green = blend(skin, y, x, fy, fx, 0), blend(skin, y, x, fy, fx, 1)
        blue = blend(skin, y, x, fy, fx, 2)
        spot = blend(skin, y, x, fy, fx, 3) * highlight(nx, ny, nz, lights, half, 4)
        spot *= np.float32(gloss)
        # Light reaches round the edge of shade: red light, which travels furthest, most of all.
        wrap, reddening = np.float32(0.35), np.float32(0.1)
      elif kind == EYE:
        y, x, fy, fx = corner(eye, u, v)
        red, green = blend(eye, y, x, fy, fx, 0), blend(eye, y, x, fy, fx, 1)
        blue = blend(eye, y, x, fy, fx, 2)
        spot = np.float32(0.9) * highlight(nx, ny, nz, lights, half, 7) * sky
      elif kind == TEETH:
        red = plain[MOUTH, 0] + (red - plain[MOUTH, 0]) * v
        green = plain[MOUTH, 1] + (green - plain[MOUTH, 1]) * v
        blue = plain[MOUTH, 2] + (blue - plain[MOUTH, 2]) * v
        spot = np.float32(0.1) * highlight(nx, ny, nz, lights, half, 5) * sky
        # What light comes in is thrown about between wet surfaces: the crowns shade one another
        # less than their normals say.
        wrap = np.float32(0.8) * v
      elif kind != CLOTH:
        spot = np.float32(0.03) * highlight(nx, ny, nz, lights, half, 4) * sky
      for channel, albedo in enumerate((red, green, blue)):
        direct = max(key + wrap, ZERO) * lights[0, 3 + channel]
        direct += max(fill + wrap, ZERO) * lights[1, 3 + channel]
        light = ambient[channel] * sky + direct / (ONE + wrap) * open_share
        picture[row, column, channel] = albedo * light + spot
        wrap -= reddening


@_compile
def layer(
  front: np.ndarray,
  cover: np.ndarray,
  depth: np.ndarray,
  screen: np.ndarray,
  normals: np.ndarray,
  triangles: np.ndarray,
  order: np.ndarray,
  uv: np.ndarray,
  texture: np.ndarray,
  colour: np.ndarray,
  opacity: float,
  bias: float,
  lights: np.ndarray,
  ambient: np.ndarray,
) -> None:
  """Puts a translucent mesh behind what is drawn in front of the opaque parts: hair, brows, lashes.

  From near to far, so that a pixel that is full already costs next to nothing.

  Args:
    front: [size, size, 3] float32 linear light, multiplied by `cover`; added to.
    cover: [size, size] float32 in [0, 1]; added to.
    depth: [size, size] float32 inverse distance of the opaque parts.
    screen: [vertices, 3] float32.
    normals: [vertices, 3] float32.
    triangles: [triangles, 3] int32.
    order: [triangles] the order to draw in: near to far.
    uv: [triangles, 3, 2] float32.
    texture: [height, width, 2] float32 brightness and alpha, both in [0, 1].
    colour: [3] float32 albedo.
    opacity: factor on alpha.
    bias: how far behind an opaque part (relative distance) a strand may lie and still be drawn.
    lights: [2, 6] float32.
    ambient: [3] float32.
  """
  size = front.shape[0]
  lit = np.empty(3, np.float32)
  opacity, lift, faint = np.float32(opacity), np.float32(1 + bias), np.float32(0.004)
  for k in range(order.shape[0]):
    t = order[k]
    a, b, c = triangles[t, 0], triangles[t, 1], triangles[t, 2]
    area = twice_area(screen, a, b, c)
    if area == 0:
      continue
    left, right, top, bottom, bx, by, cx, cy = bounds(screen, a, b, c, size, area)
    if left >= right or top >= bottom:
      continue
    light_strand(normals, a, b, c, lights, ambient, colour, lit)
    za = screen[a, 2]
    zb, zc = screen[b, 2], screen[c, 2]
    x = left + HALF - screen[a, 0]
    for row in range(top, bottom):
      y = row + HALF - screen[a, 1]
      first, last, wb, wc = span(x, y, bx, by, cx, cy, left, right)
      for column in range(first, last):
        wb, wc = wb + bx, wc + cx
        if cover[row, column] > FULL:
          continue
        sb, sc = np.float32(wb) * zb, np.float32(wc) * zc
        sa = np.float32(1 - wb - wc) * za
        near = sa + sb + sc
        if near * lift < depth[row, column]:
          continue
        inverse = ONE / near
        sa, sb, sc = sa * inverse, sb * inverse, sc * inverse
        u = sa * uv[t, 0, 0] + sb * uv[t, 1, 0] + sc * uv[t, 2, 0]
        v = sa * uv[t, 0, 1] + sb * uv[t, 1, 1] + sc * uv[t, 2, 1]
        ty, tx, fy, fx = corner(texture, u, v)
        alpha = min(opacity * blend(texture, ty, tx, fy, fx, 1), ONE)
        if alpha < faint:
          continue
        share = alpha * (ONE - cover[row, column])
        bright = share * blend(texture, ty, tx, fy, fx, 0)
        for channel in range(3):
          front[row, column, channel] += bright * lit[channel]
        cover[row, column] += share


@_compile
def light_strand(
  normals: np.ndarray,
  a: int,
  b: int,
  c: int,
  lights: np.ndarray,
  ambient: np.ndarray,
  colour: np.ndarray,
  lit: np.ndarray,
) -> None:
  """Writes the light that a triangle of `layer` sends to `lit`: [3] float32."""
  nx = normals[a, 0] + normals[b, 0] + normals[c, 0]
  ny = normals[a, 1] + normals[b, 1] + normals[c, 1]
  nz = normals[a, 2] + normals[b, 2] + normals[c, 2]
  length = np.sqrt(nx * nx + ny * ny + nz * nz) + np.float32(1e-6)
  # A strand has two sides: the one that faces us is the one that is lit.
  if nz < 0:
    length = -length
  key = (nx * lights[0, 0] + ny * lights[0, 1] + nz * lights[0, 2]) / length
  fill = (nx * lights[1, 0] + ny * lights[1, 1] + nz * lights[1, 2]) / length
  wrap = np.float32(0.4)
  for channel in range(3):
    direct = max(key + wrap, ZERO) * lights[0, 3 + channel]
    direct += max(fill + wrap, ZERO) * lights[1, 3 + channel]
    lit[channel] = colour[channel] * (ambient[channel] + direct / (ONE + wrap))


@_compile
def lay_over(picture: np.ndarray, cover: np.ndarray, front: np.ndarray, veil: np.ndarray) -> None:
  """Lays a picture in front of another, in place; both are multiplied by their coverage."""
  for row in range(picture.shape[0]):
    for column in range(picture.shape[1]):
      share = ONE - veil[row, column]
      if share == ONE:
        continue
      for channel in range(3):
        picture[row, column, channel] = (
          front[row, column, channel] + share * picture[row, column, channel]
        )
      cover[row, column] = veil[row, column] + share * cover[row, column]


@_compile
def fold_skin(
  skin: np.ndarray, texels: np.ndarray, maps: np.ndarray, strengths: np.ndarray
) -> np.ndarray:
  """Darkens (and, beside the dark, lightens) the skin where expressions fold it.

  Args:
    skin: [height, width, 4] float32.
    texels: [texels, 2] rows and columns where there may be a fold.
    maps: [texels, folds] float32 in [-1, 1]: 1 is the bottom of a fold.
    strengths: [folds] float32 how deep each fold is; 1 takes half of the light.

  Returns:
    [height, width, 4] float32, the folded skin.
  """
  folded = skin.copy()
  for i in range(texels.shape[0]):
    dark = ZERO
    for k in range(maps.shape[1]):
      dark += strengths[k] * maps[i, k]
    factor = min(max(ONE - HALF * dark, np.float32(0.3)), np.float32(1.3))
    texel = folded[texels[i, 0], texels[i, 1]]
    # Shade in a fold is red: light reaches it through the skin.
    texel[0] *= np.float32(0.3) + np.float32(0.7) * factor
    texel[1] *= factor
    texel[2] *= factor
    texel[3] *= min(factor, ONE)
  return folded


@_compile
def paint_rods(
  size: int,
  rods: np.ndarray,
  starts: np.ndarray,
  albedo: np.ndarray,
  lights: np.ndarray,
  ambient: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
  """Paints parts of a hand, each of rounded rods that run into each other.

  Args:
    size: width and height of the picture in pixels.
    rods: [rods, 5] float32 both ends (x, y) and the radius, in pixels.
    starts: [parts + 1] where each part's rods begin; parts come from far to near.
    albedo: [3] float32.
    lights: [2, 6] float32, see `shade`.
    ambient: [3] float32.

  Returns:
    [size, size, 3] float32 linear light, multiplied by coverage, and [size, size] float32 coverage.
  """
  front = np.zeros((size, size, 3), np.float32)
  cover = np.zeros((size, size), np.float32)
  wrap, full = np.float32(0.3), np.float32(1 / 1.3)
  for part in range(starts.shape[0] - 1):
    mine = rods[starts[part] : starts[part + 1]]
    along = np.empty((mine.shape[0], 3), np.float32)
    for i in range(mine.shape[0]):
      ux, uy = mine[i, 2] - mine[i, 0], mine[i, 3] - mine[i, 1]
      square = max(ux * ux + uy * uy, np.float32(1e-6))
      along[i, 0], along[i, 1], along[i, 2] = ux / square, uy / square, ONE / mine[i, 4]
    # Beyond these many pixels from a rod's middle its coverage is 0.
    reach = mine[:, 4] * (1 + np.float32(0.75) / mine[0, 4]) + HALF
    top = max(int(np.floor((np.minimum(mine[:, 1], mine[:, 3]) - reach).min())), 0)
    bottom = min(int(np.ceil((np.maximum(mine[:, 1], mine[:, 3]) + reach).max())), size)
    for row in range(top, bottom):
      left, right = rod_columns(mine, reach, np.float32(row) + HALF, size)
      for column in range(left, right):
        away, x, y = nearest_rod(mine, along, np.float32(column) + HALF, np.float32(row) + HALF)
        alpha = min((ONE - away) * mine[0, 4] / np.float32(1.5) + HALF, ONE)
        if alpha <= 0:
          continue
        # Flatter than a cylinder, as fingers are.
        flat = np.float32(0.8) / max(away, ONE)
        nx, ny, shut = flat * x, -flat * y, min(away, ONE) ** 4
        nz = np.sqrt(ONE - nx * nx - ny * ny)
        # Between fingers little light arrives.
        sky = ONE - np.float32(0.55) * shut
        key = nx * lights[0, 0] + ny * lights[0, 1] + nz * lights[0, 2]
        fill = nx * lights[1, 0] + ny * lights[1, 1] + nz * lights[1, 2]
        key, fill = max((key + wrap) * full, ZERO), max((fill + wrap) * full, ZERO)
        for channel in range(3):
          light = ambient[channel] + key * lights[0, 3 + channel] + fill * lights[1, 3 + channel]
          colour = albedo[channel] * light * sky
          front[row, column, channel] += alpha * (colour - front[row, column, channel])
        cover[row, column] += alpha * (ONE - cover[row, column])
  return front, cover


@_compile
def rod_columns(rods: np.ndarray, reach: np.ndarray, y: float, size: int) -> tuple[int, int]:
  """Between which columns of a row there may be something of some rods.

  Args:
    rods: [rods, 5] float32 as in `paint_rods`.
    reach: [rods] how far from its middle there is something of each.
    y: of the row's centres.
    size: width of the picture in pixels.

  Returns:
    The first column and one past the last.
  """
  low, high = float(size), 0.0
  for i in range(rods.shape[0]):
    ax, ay, bx, by = rods[i, 0], rods[i, 1], rods[i, 2], rods[i, 3]
    if min(ay, by) - reach[i] > y or max(ay, by) + reach[i] < y:
      continue
    first, last = 0.0, 1.0
    if ay != by:  # the part of its middle that is near enough to the row
      one, other = (y - reach[i] - ay) / (by - ay), (y + reach[i] - ay) / (by - ay)
      first, last = max(first, min(one, other)), min(last, max(one, other))
    one, other = ax + first * (bx - ax), ax + last * (bx - ax)
    low, high = (
      min(low, one - reach[i], other - reach[i]),
      max(high, one + reach[i], other + reach[i]),
    )
  return max(int(np.floor(low)), 0), min(int(np.ceil(high)), size)


@_compile
def nearest_rod(
  rods: np.ndarray, along: np.ndarray, x: float, y: float
) -> tuple[float, float, float]:
  """How far a point is from the middle of the nearest rod, in radii, and in which direction.

  Args:
    rods: [rods, 5] float32 as in `paint_rods`.
    along: [rods, 3] float32 from one end to the other, over its squared length (x, y); one over
      the radius.
    x: of the point.
    y: of the point.
  """
  best, right, down = np.float32(1e9), ZERO, ZERO
  for i in range(rods.shape[0]):
    px, py = x - rods[i, 0], y - rods[i, 1]
    share = min(max(px * along[i, 0] + py * along[i, 1], ZERO), ONE)
    dx = (px - share * (rods[i, 2] - rods[i, 0])) * along[i, 2]
    dy = (py - share * (rods[i, 3] - rods[i, 1])) * along[i, 2]
    square = dx * dx + dy * dy
    if square < best:
      best, right, down = square, dx, dy
  return np.sqrt(best), right, down


@_compile
def darken(picture: np.ndarray, shadow: np.ndarray) -> None:
  """Multiplies a picture, [size, size, 3], by a shadow, [size, size], in place."""
  for row in range(picture.shape[0]):
    for column in range(picture.shape[1]):
      for channel in range(3):
        picture[row, column, channel] *= shadow[row, column]


@_compile
def halve(picture: np.ndarray, cover: np.ndarray, background: np.ndarray) -> np.ndarray:
  """Averages 2 x 2 pixels and puts a background behind them.

  Args:
    picture: [2 size, 2 size, 3] float32 linear light, multiplied by `cover`.
    cover: [2 size, 2 size] float32 in [0, 1].
    background: [size, size, 3] float32 linear light.

  Returns:
    [size, size, 3] float32 linear light.
  """
  size = background.shape[0]
  small = np.empty((size, size, 3), np.float32)
  quarter = np.float32(0.25)
  for row in range(size):
    for column in range(size):
      r, c = 2 * row, 2 * column
      free = ONE - quarter * (cover[r, c] + cover[r + 1, c] + cover[r, c + 1] + cover[r + 1, c + 1])
      for k in range(3):
        small[row, column, k] = free * background[row, column, k] + quarter * (
          picture[r, c, k] + picture[r + 1, c, k] + picture[r, c + 1, k] + picture[r + 1, c + 1, k]
        )
  return small
