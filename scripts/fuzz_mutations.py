"""The changes of inputs that the fuzzer makes: of bytes, digits, fields and lines."""

import random
import re

# Between the parts of inputs that have several, and between name and content of a file.
END, NAME_END = b"\x1d\n", b"\x1e\n"
TOKENS = [
  b"-5", b"-1", b"nan", b"inf", b"1e999", b"-0", b"1_0", b"+1", b" 1", b"1.", b".5", b"0x10",
  b"9" * 400, b"99999999999999999999", "\u0663".encode(), "\u2028".encode(), "\u00e9".encode(),
  b"\x00", b"\xff", b"\r", b"\n", b"\r\n", b"\xef\xbb\xbf", b"\xed\xb2\x80", b"../", b".jpg",
  b".txt", b"v1/00001.jpg", b'"', b"'", b"{", b"[", b"(", b"}", b"]", b")", b"null", b"true",
  b"[]", b"\\", b"%s", b"--", b"=", b",", b":", b"/", b".", b"(?", b"\\1", b"blocks/", b"*", END,
  NAME_END,
]  # fmt: skip
_WORDS = (0, 1, 127, 128, 255, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)


def _lines(data: bytes, rng: random.Random) -> bytes:
  """Swaps, doubles, drops or joins lines."""
  lines = data.split(b"\n")
  i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
  match rng.randrange(4):
    case 0:
      lines[i], lines[j] = lines[j], lines[i]
    case 1:
      lines.insert(i, lines[j])
    case 2:
      del lines[i]
    case 3:
      lines[i : i + 2] = [b"".join(lines[i : i + 2])]
  return b"\n".join(lines)


def _fields(data: bytes, rng: random.Random) -> bytes:
  """Swaps, doubles, drops or replaces what stands between separators."""
  parts = re.split(rb"([,=:/\n\"]+)", data)
  at = range(0, len(parts), 2)
  i, j = rng.choice(at), rng.choice(at)
  match rng.randrange(4):
    case 0:
      parts[i], parts[j] = parts[j], parts[i]
    case 1:
      parts[i] = parts[j]
    case 2:
      del parts[i : i + 2]
    case 3:
      parts[i] = rng.choice(TOKENS)
  return b"".join(parts)


def _token(data: bytes, rng: random.Random) -> bytes:
  """Puts a token somewhere; or, as Windows does, a mark in front or other ends of lines."""
  at = rng.randrange(len(data) + 1)
  match rng.randrange(6):
    case 0:
      return b"\xef\xbb\xbf" + data
    case 1:
      return data.replace(b"\n", b"\r\n")
    case _:
      return data[:at] + rng.choice(TOKENS) + data[at:]


def _long(data: bytes, rng: random.Random) -> bytes:
  """Repeats a byte or a few of them, up to 30,000 times."""
  at = rng.randrange(len(data) + 1)
  piece = data[at : at + rng.choice([1, 1, 2, 8])] or b"("
  return data[:at] + piece * int(10 ** rng.uniform(0, 4.5) / len(piece)) + data[at:]


def _bytes(data: bytes, rng: random.Random) -> bytes:
  """Flips a bit, writes a number of 1 to 8 bytes, cuts, moves or clears a piece."""
  out = bytearray(data or b"\0")
  at, end = sorted((rng.randrange(len(out)), rng.randrange(len(out) + 1)))
  match rng.randrange(6):
    case 0:
      out[at] ^= 1 << rng.randrange(8)
    case 1:
      size = rng.choice([1, 2, 4, 8])
      number = rng.choice(_WORDS) % 256**size
      out[at : at + size] = number.to_bytes(size, rng.choice(["little", "big"]))
    case 2:
      del out[at:]
    case 3:
      del out[at:end]
    case 4:
      out[at:at] = out[at:end]
    case 5:
      out[at:end] = bytes(end - at)
  return bytes(out)


def _digits(data: bytes, rng: random.Random) -> bytes:
  """Changes digits, so that much of what comes is taken."""
  at = [i for i, byte in enumerate(data) if 48 <= byte < 58]
  out = bytearray(data)
  for i in rng.sample(at, min(len(at), rng.randrange(1, 5))):
    out[i] = ord(rng.choice("0123456789"))
  return bytes(out)


def mutate(data: bytes, rng: random.Random) -> bytes:
  """Changes an input in one to four places."""
  for _ in range(rng.choice([1, 1, 2, 4])):
    change = rng.choices([_digits, _lines, _fields, _token, _long, _bytes], [4, 4, 4, 4, 1, 4])[0]
    data = change(data, rng)
  return data
