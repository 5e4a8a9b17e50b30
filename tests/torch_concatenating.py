"""InceptionV3 and DenseNet in PyTorch, plainly, with the names that torchvision gives their parts.

From the tables of the papers (Szegedy et al., 2015, arXiv:1512.00567; Huang et al., 2016,
arXiv:1608.06993) and, where these are silent, the authors' code. What makes classes of the last map
is there for its names' sake; the networks give the map.
"""

import torch
from torch import nn
from torch.nn import functional


class Unit(nn.Module):
  """Convolution, batch norm, ReLU."""

  def __init__(self, inner, outer, kernel, stride=1, padding=0):
    super().__init__()
    self.conv = nn.Conv2d(inner, outer, kernel, stride, padding, bias=False)
    self.bn = nn.BatchNorm2d(outer, eps=1e-3)

  def forward(self, x):
    return functional.relu(self.bn(self.conv(x)))


def unit(inner, outer, rows, columns=None):
  columns = columns or rows
  return Unit(inner, outer, (rows, columns), padding=(rows // 2, columns // 2))


def means(x, count_padding):
  return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=count_padding)


class Fine(nn.Module):
  """35 x 35 places."""

  def __init__(self, inner, pooled, c):
    super().__init__()
    self.branch1x1 = unit(inner, c(64), 1)
    self.branch5x5_1 = unit(inner, c(48), 1)
    self.branch5x5_2 = unit(c(48), c(64), 5)
    self.branch3x3dbl_1 = unit(inner, c(64), 1)
    self.branch3x3dbl_2 = unit(c(64), c(96), 3)
    self.branch3x3dbl_3 = unit(c(96), c(96), 3)
    self.branch_pool = unit(inner, c(pooled), 1)
    self.width = 2 * c(64) + c(96) + c(pooled)

  def forward(self, x, count_padding):
    five = self.branch5x5_2(self.branch5x5_1(x))
    three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
    pooled = self.branch_pool(means(x, count_padding))
    return torch.cat([self.branch1x1(x), five, three, pooled], 1)


class ToMiddle(nn.Module):
  def __init__(self, inner, c):
    super().__init__()
    self.branch3x3 = Unit(inner, c(384), 3, 2)
    self.branch3x3dbl_1 = unit(inner, c(64), 1)
    self.branch3x3dbl_2 = unit(c(64), c(96), 3)
    self.branch3x3dbl_3 = Unit(c(96), c(96), 3, 2)
    self.width = c(384) + c(96) + inner

  def forward(self, x, count_padding):
    three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
    return torch.cat([self.branch3x3(x), three, functional.max_pool2d(x, 3, 2)], 1)


class Middle(nn.Module):
  """17 x 17 places."""

  def __init__(self, inner, inside, c):
    super().__init__()
    wide, inside = c(192), c(inside)
    self.branch1x1 = unit(inner, wide, 1)
    self.branch7x7_1 = unit(inner, inside, 1)
    self.branch7x7_2 = unit(inside, inside, 1, 7)
    self.branch7x7_3 = unit(inside, wide, 7, 1)
    self.branch7x7dbl_1 = unit(inner, inside, 1)
    self.branch7x7dbl_2 = unit(inside, inside, 7, 1)
    self.branch7x7dbl_3 = unit(inside, inside, 1, 7)
    self.branch7x7dbl_4 = unit(inside, inside, 7, 1)
    self.branch7x7dbl_5 = unit(inside, wide, 1, 7)
    self.branch_pool = unit(inner, wide, 1)
    self.width = 4 * wide

  def forward(self, x, count_padding):
    once = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
    twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
    twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
    pooled = self.branch_pool(means(x, count_padding))
    return torch.cat([self.branch1x1(x), once, twice, pooled], 1)


class ToCoarse(nn.Module):
  def __init__(self, inner, c):
    super().__init__()
    self.branch3x3_1 = unit(inner, c(192), 1)
    self.branch3x3_2 = Unit(c(192), c(320), 3, 2)
    self.branch7x7x3_1 = unit(inner, c(192), 1)
    self.branch7x7x3_2 = unit(c(192), c(192), 1, 7)
    self.branch7x7x3_3 = unit(c(192), c(192), 7, 1)
    self.branch7x7x3_4 = Unit(c(192), c(192), 3, 2)
    self.width = c(320) + c(192) + inner

  def forward(self, x, count_padding):
    three = self.branch3x3_2(self.branch3x3_1(x))
    seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
    return torch.cat([three, self.branch7x7x3_4(seven), functional.max_pool2d(x, 3, 2)], 1)


class Coarse(nn.Module):
  """8 x 8 places."""

  def __init__(self, inner, c):
    super().__init__()
    self.branch1x1 = unit(inner, c(320), 1)
    self.branch3x3_1 = unit(inner, c(384), 1)
    self.branch3x3_2a = unit(c(384), c(384), 1, 3)
    self.branch3x3_2b = unit(c(384), c(384), 3, 1)
    self.branch3x3dbl_1 = unit(inner, c(448), 1)
    self.branch3x3dbl_2 = unit(c(448), c(384), 3)
    self.branch3x3dbl_3a = unit(c(384), c(384), 1, 3)
    self.branch3x3dbl_3b = unit(c(384), c(384), 3, 1)
    self.branch_pool = unit(inner, c(192), 1)
    self.width = c(320) + 4 * c(384) + c(192)

  def forward(self, x, count_padding):
    once = self.branch3x3_1(x)
    twice = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
    crosses = [self.branch3x3_2a(once), self.branch3x3_2b(once)]
    crosses += [self.branch3x3dbl_3a(twice), self.branch3x3dbl_3b(twice)]
    pooled = self.branch_pool(means(x, count_padding))
    return torch.cat([self.branch1x1(x), *crosses, pooled], 1)


class Auxiliary(nn.Module):
  def __init__(self, inner, c):
    super().__init__()
    self.conv0 = unit(inner, c(128), 1)
    self.conv1 = Unit(c(128), c(768), 5)
    self.fc = nn.Linear(c(768), 1000)


class Inception(nn.Module):
  """InceptionV3.

  Args:
    multiplier: of all channels, which stay multiples of 8.
    count_padding: whether means at the edge count the zeros around: torchvision's do.
  """

  def __init__(self, multiplier=1.0, count_padding=True):
    super().__init__()
    c = lambda count: max(8, round(count * multiplier / 8) * 8)
    self.count_padding = count_padding
    self.Conv2d_1a_3x3 = Unit(3, c(32), 3, 2)
    self.Conv2d_2a_3x3 = Unit(c(32), c(32), 3)
    self.Conv2d_2b_3x3 = unit(c(32), c(64), 3)
    self.Conv2d_3b_1x1 = unit(c(64), c(80), 1)
    self.Conv2d_4a_3x3 = Unit(c(80), c(192), 3)
    self.Mixed_5b = Fine(c(192), 32, c)
    self.Mixed_5c = Fine(self.Mixed_5b.width, 64, c)
    self.Mixed_5d = Fine(self.Mixed_5c.width, 64, c)
    self.Mixed_6a = ToMiddle(self.Mixed_5d.width, c)
    self.Mixed_6b = Middle(self.Mixed_6a.width, 128, c)
    self.Mixed_6c = Middle(self.Mixed_6b.width, 160, c)
    self.Mixed_6d = Middle(self.Mixed_6c.width, 160, c)
    self.Mixed_6e = Middle(self.Mixed_6d.width, 192, c)
    self.AuxLogits = Auxiliary(self.Mixed_6e.width, c)
    self.Mixed_7a = ToCoarse(self.Mixed_6e.width, c)
    self.Mixed_7b = Coarse(self.Mixed_7a.width, c)
    self.Mixed_7c = Coarse(self.Mixed_7b.width, c)
    self.fc = nn.Linear(self.Mixed_7c.width, 1000)

  def forward(self, x):
    x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
    x = functional.max_pool2d(x, 3, 2)
    x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
    x = functional.max_pool2d(x, 3, 2)
    for name in ["5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"]:
      x = getattr(self, f"Mixed_{name}")(x, self.count_padding)
    return x


class DenseLayer(nn.Module):
  def __init__(self, inner, growth):
    super().__init__()
    self.norm1 = nn.BatchNorm2d(inner)
    self.conv1 = nn.Conv2d(inner, 4 * growth, 1, bias=False)
    self.norm2 = nn.BatchNorm2d(4 * growth)
    self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

  def forward(self, x):
    y = self.conv1(functional.relu(self.norm1(x)))
    return torch.cat([x, self.conv2(functional.relu(self.norm2(y)))], 1)


class Transition(nn.Module):
  def __init__(self, inner):
    super().__init__()
    self.norm = nn.BatchNorm2d(inner)
    self.conv = nn.Conv2d(inner, inner // 2, 1, bias=False)

  def forward(self, x):
    return functional.avg_pool2d(self.conv(functional.relu(self.norm(x))), 2)


class Dense(nn.Module):
  """DenseNet.

  Args:
    repeats: layers of each block.
    growth: channels that a layer adds.
  """

  def __init__(self, repeats=(6, 12, 24, 16), growth=32):
    super().__init__()
    inner, parts = 2 * growth, nn.ModuleDict()
    parts["conv0"] = nn.Conv2d(3, inner, 7, 2, 3, bias=False)
    parts["norm0"] = nn.BatchNorm2d(inner)
    for number, count in enumerate(repeats, 1):
      block = nn.ModuleDict()
      for layer in range(1, count + 1):
        block[f"denselayer{layer}"] = DenseLayer(inner, growth)
        inner += growth
      parts[f"denseblock{number}"] = block
      if number < len(repeats):
        parts[f"transition{number}"] = Transition(inner)
        inner //= 2
    parts["norm5"] = nn.BatchNorm2d(inner)
    self.features = parts
    self.classifier = nn.Linear(inner, 1000)

  def forward(self, x):
    parts = self.features
    x = functional.relu(parts["norm0"](parts["conv0"](x)))
    x = functional.max_pool2d(x, 3, 2, 1)
    for name, part in parts.items():
      if name.startswith("denseblock"):
        for layer in part.values():
          x = layer(x)
      elif name.startswith("transition"):
        x = part(x)
    return functional.relu(parts["norm5"](x))
