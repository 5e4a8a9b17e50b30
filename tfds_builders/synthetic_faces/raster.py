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

_compile = numba.njit(cache=True, nogil=True)


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
    ax, ay, bx, by = screen[a, 0], screen[a, 1], screen[b, 0], screen[b, 1]
    cx, cy = screen[c, 0], screen[c, 1]
    area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
    if area == 0 or (cull and area > 0):
      continue
    inverse = 1 / area
    left = max(int(np.ceil(min(ax, bx, cx) - 0.5)), 0)
    right = min(int(np.floor(max(ax, bx, cx) - 0.5)), size - 1)
    top = max(int(np.ceil(min(ay, by, cy) - 0.5)), 0)
    bottom = min(int(np.floor(max(ay, by, cy) - 0.5)), size - 1)
    for row in range(top, bottom + 1):
      y = np.float32(row + 0.5)
      for column in range(left, right + 1):
        x = np.float32(column + 0.5)
        wb = ((x - ax) * (cy - ay) - (y - ay) * (cx - ax)) * inverse
        wc = ((bx - ax) * (y - ay) - (by - ay) * (x - ax)) * inverse
        if wb < 0 or wc < 0 or wb + wc > 1:
          continue
        near = (1 - wb - wc) * screen[a, 2] + wb * screen[b, 2] + wc * screen[c, 2]
        if near > depth[row, column]:
          depth[row, column] = near
          shown[row, column] = t
          weights[row, column, 0] = wb
          weights[row, column, 1] = wc
  return depth, shown, weights


@_compile
def corner(texture: np.ndarray, u: float, v: float) -> tuple[int, int, float, float]:
  """Where (u, v) in [0, 1] lies in a texture: row and column of a texel, shares of the next."""
  x = min(max(u * texture.shape[1] - 0.5, 0.0), texture.shape[1] - 1.001)
  y = min(max(v * texture.shape[0] - 0.5, 0.0), texture.shape[0] - 1.001)
  return int(y), int(x), y - int(y), x - int(x)


@_compile
def blend(texture: np.ndarray, row: int, column: int, fy: float, fx: float, channel: int) -> float:
  """Reads one channel of [height, width, channels], bilinear, at what `corner` found."""
  upper = texture[row, column, channel] * (1 - fx) + texture[row, column + 1, channel] * fx
  lower = texture[row + 1, column, channel] * (1 - fx) + texture[row + 1, column + 1, channel] * fx
  return upper * (1 - fy) + lower * fy


@_compile
def highlight(nx: float, ny: float, nz: float, lights: np.ndarray, doublings: int) -> float:
  """Strength of the mirror-like spot of all lights (Blinn-Phong, the viewer far in front).

  The exponent is 2 ** `doublings`: powers of two are cheap.
  """
  total = 0.0
  for i in range(lights.shape[0]):
    hx, hy, hz = lights[i, 0], lights[i, 1], lights[i, 2] + 1
    cosine = nx * hx + ny * hy + nz * hz
    if cosine <= 0:
      continue
    cosine /= np.sqrt(hx * hx + hy * hy + hz * hz) + 1e-6
    for _ in range(doublings):
      cosine *= cosine
    total += cosine * lights[i, 4]
  return total


@_compile
def shade(
  picture: np.ndarray,
  cover: np.ndarray,
  shown: np.ndarray,
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
  for row in range(shown.shape[0]):
    for column in range(shown.shape[1]):
      t = shown[row, column]
      if t < 0:
        continue
      a, b, c = triangles[t, 0], triangles[t, 1], triangles[t, 2]
      # Weights on the screen, times inverse distance, are weights on the surface.
      wb = weights[row, column, 0] * screen[b, 2]
      wc = weights[row, column, 1] * screen[c, 2]
      wa = (1 - weights[row, column, 0] - weights[row, column, 1]) * screen[a, 2]
      total = wa + wb + wc
      wa, wb, wc = wa / total, wb / total, wc / total
      nx = wa * normals[a, 0] + wb * normals[b, 0] + wc * normals[c, 0]
      ny = wa * normals[a, 1] + wb * normals[b, 1] + wc * normals[c, 1]
      nz = wa * normals[a, 2] + wb * normals[b, 2] + wc * normals[c, 2]
      length = np.sqrt(nx * nx + ny * ny + nz * nz) + 1e-6
      nx, ny, nz = nx / length, ny / length, nz / length
      sky = wa * occlusion[a] + wb * occlusion[b] + wc * occlusion[c]
      u = wa * uv[t, 0, 0] + wb * uv[t, 1, 0] + wc * uv[t, 2, 0]
      v = wa * uv[t, 0, 1] + wb * uv[t, 1, 1] + wc * uv[t, 2, 1]
      kind = part[t]
      key = nx * lights[0, 0] + ny * lights[0, 1] + nz * lights[0, 2]
      fill = nx * lights[1, 0] + ny * lights[1, 1] + nz * lights[1, 2]
      # Direct light is blocked less than the sky is: crevices keep some of it.
      open_share = min(0.35 + 0.9 * sky, 1.0)
      spot, y, x, fy, fx = 0.0, 0, 0, 0.0, 0.0
      if kind == SKIN:
        y, x, fy, fx = corner(skin, u, v)
        spot = gloss * blend(skin, y, x, fy, fx, 3) * highlight(nx, ny, nz, lights, 4)
      elif kind == EYE:
        y, x, fy, fx = corner(eye, u, v)
        spot = 0.9 * highlight(nx, ny, nz, lights, 7) * sky
      elif kind == TEETH:
        spot = 0.1 * highlight(nx, ny, nz, lights, 5) * sky
      elif kind != CLOTH:
        spot = 0.03 * highlight(nx, ny, nz, lights, 4) * sky
      cover[row, column] = 1
      for channel in range(3):
        wrap = 0.2
        if kind == SKIN:
          albedo = blend(skin, y, x, fy, fx, channel)
          # Light reaches round the edge of shade: red light, which travels furthest, most of all.
          wrap = 0.35 - 0.1 * channel
        elif kind == EYE:
          albedo = blend(eye, y, x, fy, fx, channel)
        elif kind == TEETH:
          albedo = plain[MOUTH, channel] * (1 - v) + plain[TEETH, channel] * v
        else:
          albedo = plain[kind, channel]
        direct = max(key + wrap, 0.0) * lights[0, 3 + channel]
        direct += max(fill + wrap, 0.0) * lights[1, 3 + channel]
        light = ambient[channel] * sky + direct / (1 + wrap) * open_share
        picture[row, column, channel] = albedo * light + spot


@_compile
def layer(
  picture: np.ndarray,
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
  """Lays a translucent mesh over the picture, in place: hair, brows, lashes.

  Args:
    picture: [size, size, 3] float32 linear light, multiplied by `cover`.
    cover: [size, size] float32 in [0, 1].
    depth: [size, size] float32 inverse distance of the opaque parts.
    screen: [vertices, 3] float32.
    normals: [vertices, 3] float32.
    triangles: [triangles, 3] int32.
    order: [triangles] the order to draw in: far to near.
    uv: [triangles, 3, 2] float32.
    texture: [height, width, 2] float32 brightness and alpha, both in [0, 1].
    colour: [3] float32 albedo.
    opacity: factor on alpha.
    bias: how far behind an opaque part (relative distance) a strand may lie and still be drawn.
    lights: [2, 6] float32.
    ambient: [3] float32.
  """
  size = picture.shape[0]
  lit = np.empty(3, np.float32)
  for k in range(order.shape[0]):
    t = order[k]
    a, b, c = triangles[t, 0], triangles[t, 1], triangles[t, 2]
    ax, ay, bx, by = screen[a, 0], screen[a, 1], screen[b, 0], screen[b, 1]
    cx, cy = screen[c, 0], screen[c, 1]
    area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
    if area == 0:
      continue
    inverse = 1 / area
    left = max(int(np.ceil(min(ax, bx, cx) - 0.5)), 0)
    right = min(int(np.floor(max(ax, bx, cx) - 0.5)), size - 1)
    top = max(int(np.ceil(min(ay, by, cy) - 0.5)), 0)
    bottom = min(int(np.floor(max(ay, by, cy) - 0.5)), size - 1)
    nx = normals[a, 0] + normals[b, 0] + normals[c, 0]
    ny = normals[a, 1] + normals[b, 1] + normals[c, 1]
    nz = normals[a, 2] + normals[b, 2] + normals[c, 2]
    length = np.sqrt(nx * nx + ny * ny + nz * nz) + 1e-6
    # A strand has two sides: the one that faces us is the one that is lit.
    if nz < 0:
      length = -length
    key = nx * lights[0, 0] + ny * lights[0, 1] + nz * lights[0, 2]
    fill = nx * lights[1, 0] + ny * lights[1, 1] + nz * lights[1, 2]
    for channel in range(3):
      direct = max(key / length + 0.4, 0.0) * lights[0, 3 + channel]
      direct += max(fill / length + 0.4, 0.0) * lights[1, 3 + channel]
      lit[channel] = colour[channel] * (ambient[channel] + direct / 1.4)
    for row in range(top, bottom + 1):
      y = np.float32(row + 0.5)
      for column in range(left, right + 1):
        x = np.float32(column + 0.5)
        wb = ((x - ax) * (cy - ay) - (y - ay) * (cx - ax)) * inverse
        wc = ((bx - ax) * (y - ay) - (by - ay) * (x - ax)) * inverse
        if wb < 0 or wc < 0 or wb + wc > 1:
          continue
        near = (1 - wb - wc) * screen[a, 2] + wb * screen[b, 2] + wc * screen[c, 2]
        if near * (1 + bias) < depth[row, column]:
          continue
        sb, sc = wb * screen[b, 2] / near, wc * screen[c, 2] / near
        sa = 1 - sb - sc
        u = sa * uv[t, 0, 0] + sb * uv[t, 1, 0] + sc * uv[t, 2, 0]
        v = sa * uv[t, 0, 1] + sb * uv[t, 1, 1] + sc * uv[t, 2, 1]
        ty, tx, fy, fx = corner(texture, u, v)
        alpha = min(opacity * blend(texture, ty, tx, fy, fx, 1), 1.0)
        if alpha < 0.004:
          continue
        brightness = blend(texture, ty, tx, fy, fx, 0)
        for channel in range(3):
          value = brightness * lit[channel]
          picture[row, column, channel] = (
            alpha * value + (1 - alpha) * picture[row, column, channel]
          )
        cover[row, column] = alpha + (1 - alpha) * cover[row, column]


@_compile
def fold_skin(
  skin: np.ndarray, maps: np.ndarray, strengths: np.ndarray, folded: np.ndarray
) -> None:
  """Darkens (and, beside the dark, lightens) the skin where expressions fold it.

  Args:
    skin: [height, width, 4] float32.
    maps: [height, width, folds] float32 in [-1, 1]: 1 is the bottom of a fold.
    strengths: [folds] how deep each fold is; 1 takes half of the light.
    folded: [height, width, 4] float32, written.
  """
  for row in range(skin.shape[0]):
    for column in range(skin.shape[1]):
      dark = 0.0
      for k in range(maps.shape[2]):
        dark += strengths[k] * maps[row, column, k]
      factor = min(max(1 - 0.5 * dark, 0.3), 1.3)
      # Shade in a fold is red: light reaches it through the skin.
      folded[row, column, 0] = skin[row, column, 0] * (0.3 + 0.7 * factor)
      folded[row, column, 1] = skin[row, column, 1] * factor
      folded[row, column, 2] = skin[row, column, 2] * factor
      folded[row, column, 3] = skin[row, column, 3] * min(factor, 1.0)


@_compile
def halve(picture: np.ndarray, cover: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Averages 2 x 2 pixels of a picture and of its coverage."""
  size = picture.shape[0] // 2
  small = np.empty((size, size, 3), np.float32)
  small_cover = np.empty((size, size), np.float32)
  for row in range(size):
    for column in range(size):
      r, c = 2 * row, 2 * column
      small_cover[row, column] = 0.25 * (
        cover[r, c] + cover[r + 1, c] + cover[r, c + 1] + cover[r + 1, c + 1]
      )
      for k in range(3):
        small[row, column, k] = 0.25 * (
          picture[r, c, k] + picture[r + 1, c, k] + picture[r, c + 1, k] + picture[r + 1, c + 1, k]
        )
  return small, small_cover
