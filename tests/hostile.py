"""What the tests of hostile files share: a limit of memory, zips that lie, a pickle that acts."""

import contextlib
import os
import resource
import struct
import zipfile
from pathlib import Path

import pytest


@contextlib.contextmanager
def memory(megabytes=64):
  """Lets this process ask for so much more memory, and no more."""
  before = resource.getrlimit(resource.RLIMIT_AS)
  pages = int(Path("/proc/self/statm").read_text().split()[0])
  limit = pages * resource.getpagesize() + megabytes * 2**20
  resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_AS, before)


def refuse(match, function, *arguments, megabytes=64):
  """What a call says when it refuses, with so little memory, in one line."""
  with memory(megabytes), pytest.raises(ValueError, match=match) as error:
    function(*arguments)
  assert len(str(error.value).splitlines()) == 1
  return str(error.value)


def lies(path, name, size, packed=None):
  """Changes what a zip says of the size of a member, in both places, and leaves what it holds.

  Args:
    path: of the zip.
    name: of the member.
    size: bytes once it is unpacked.
    packed: bytes in the zip; None: as they are.
  """
  with zipfile.ZipFile(path) as archive:
    member = archive.getinfo(name)
    start = archive.start_dir
  data = bytearray(path.read_bytes())
  central = data.index(name.encode(), start) - 46
  struct.pack_into("<I", data, central + 24, size)
  struct.pack_into("<I", data, member.header_offset + 22, size)
  if packed is not None:
    struct.pack_into("<I", data, central + 20, packed)
    struct.pack_into("<I", data, member.header_offset + 18, packed)
  path.write_bytes(data)


def archive_of(members, compression=zipfile.ZIP_DEFLATED):
  """What writes a zip of these members (name -> content) to a path."""

  def write(path):
    with zipfile.ZipFile(path, "w", compression) as archive:
      for name, content in members.items():
        archive.writestr(name, content)

  return write


class Evil:
  """Makes a file where it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (str(self.path),)
