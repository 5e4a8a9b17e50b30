"""The order of an epoch, all of it at once: what Grain's `index_shuffle` gives row by row.

Asked for every row on its own, Grain's function makes the keys of its cipher anew each time, which
took 6 of the 127 microseconds that a packed image of 112 pixels takes a core.
"""

import functools

import grain
import numpy as np

_ROUNDS = 4  # as many as Grain's `shuffle` has
_CHUNK = 1 << 16  # rows that are enciphered at a time
# Of fewer rows hardly one enciphered number in sixteen is a row: Grain's function is as quick.
_FEW = 1 << 12


@functools.lru_cache(maxsize=2)  # a batch may begin in one epoch and end in the next
def permutation(length: int, seed: int) -> np.ndarray:
  """A pseudorandom permutation, to be read only.

  Each row is enciphered, again and again until it is a row again (Black & Rogaway, 2002, "Ciphers
  with arbitrary finite domains"), with four rounds of Simon (Beaulieu et al., 2013, eprint
  2013/404) of the block that just holds `length`, 16 bits at least.

  Args:
    length: of the epoch.
    seed: 32 bits.

  Returns:
    [length] int64: place in the epoch -> row, as `grain.experimental.index_shuffle(place, length -
    1, seed, 4)`. For 2**16 + 1 rows, 2**18 + 1 and so on Grain (0.2.18) takes a block that is too
    small and gives one row twice and another never; not so here.
  """
  if length < _FEW:
    shuffle = grain.experimental.index_shuffle
    rows = np.array([shuffle(place, length - 1, seed, _ROUNDS) for place in range(length)])
  else:
    rows = _cipher(length, seed)
  rows.flags.writeable = False
  return rows


def _cipher(length: int, seed: int) -> np.ndarray:
  """The permutation of many rows."""
  half = (max(16, (length - 1).bit_length()) + 1) // 2  # bits
  keys = _keys(seed)
  rows = np.empty(length, np.int64)
  for start in range(0, length, _CHUNK):
    places = np.arange(start, min(start + _CHUNK, length))
    values = places.astype(np.uint64)
    while len(places):
      values = _encipher(values, keys, half)
      done = values < length
      rows[places[done]] = values[done]
      places, values = places[~done], values[~done]
  return rows


def _encipher(values: np.ndarray, keys: list[int], half: int) -> np.ndarray:
  """Simon's rounds on blocks of 2 `half` bits; [n] uint64 to the same."""
  mask = np.uint64((1 << half) - 1)
  turned = lambda x, by: ((x << np.uint64(by)) | (x >> np.uint64(half - by))) & mask
  left, right = values >> np.uint64(half), values & mask
  for key in keys:
    left ^= turned(right, 1) & turned(right, 8) ^ turned(right, 2) ^ (np.uint64(key) & mask)
    left, right = right, left
  return left << np.uint64(half) | right


def _keys(seed: int) -> list[int]:
  """What C++'s `std::seed_seq{seed}` generates: 32 bits a round (ISO C++, rand.util.seedseq)."""
  n, word = _ROUNDS, 0xFFFFFFFF
  mixed = lambda x: x ^ (x >> 27)
  b = [0x8B8B8B8B] * n
  for k in range(n):  # with one seed and four keys, p = 1 and q = 2
    r = 1664525 * mixed(b[k] ^ b[(k + 1) % n] ^ b[k - 1]) & word
    more = r + (1 if k == 0 else k + seed * (k == 1)) & word
    b[(k + 1) % n] = b[(k + 1) % n] + r & word
    b[(k + 2) % n] = b[(k + 2) % n] + more & word
    b[k] = more
  for k in range(n):
    r = 1566083941 * mixed(b[k] + b[(k + 1) % n] + b[k - 1] & word) & word
    less = r - k & word
    b[(k + 1) % n] ^= r
    b[(k + 2) % n] ^= less
    b[k] = less
  return b
