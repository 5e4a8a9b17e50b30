"""Networks in plain PyTorch, from the papers' tables, with the names that published files have.

`width` is that of the first stage; 64 is the papers'.
"""

import numpy as np
import torch
from torch import nn

STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
UNITS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3)}  # of faces


class VGG16(nn.Module):
  """Configuration D of Simonyan & Zisserman (2014), as torchvision names it."""

  def __init__(self, *, width=64, image_size=224, dense=4096, classes=1000):
    super().__init__()
    layers, inner = [], 3
    for times, count in ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3)):
      for _ in range(count):
        layers += [nn.Conv2d(inner, times * width, 3, padding=1), nn.ReLU()]
        inner = times * width
      layers.append(nn.MaxPool2d(2))
    self.features = nn.Sequential(*layers)
    if not dense:
      self.classifier = None
      return
    hidden = [nn.Linear(inner * (image_size // 32) ** 2, dense), nn.ReLU(), nn.Dropout()]
    hidden += [nn.Linear(dense, dense), nn.ReLU(), nn.Dropout()]
    self.classifier = nn.Sequential(*hidden, nn.Linear(dense, classes))

  def forward(self, x):
    """What the last product sees; the last map where there is none."""
    x = self.features(x)
    return x if self.classifier is None else self.classifier[:-1](x.flatten(1))


def conv3x3(inner, outer, stride=1):
  return nn.Conv2d(inner, outer, 3, stride, 1, bias=False)


def projection(inner, outer, stride):
  return nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))


class Squeeze(nn.Module):
  """Squeeze and excitation by convolutions of one place, as in timm and in face.evoLVe."""

  def __init__(self, channels, bias):
    super().__init__()
    self.fc1 = nn.Conv2d(channels, channels // 16, 1, bias=bias)
    self.fc2 = nn.Conv2d(channels // 16, channels, 1, bias=bias)

  def forward(self, x):
    mean = x.mean((2, 3), keepdim=True)
    return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(mean))))


class Basic(nn.Module):
  """Two convolutions 3x3."""

  expansion = 1

  def __init__(self, inner, width, stride, *, gates, strides):
    super().__init__()
    del strides
    self.conv1, self.bn1 = conv3x3(inner, width, stride), nn.BatchNorm2d(width)
    self.conv2, self.bn2 = conv3x3(width, width), nn.BatchNorm2d(width)
    self.se = Squeeze(width, bias=True) if gates else nn.Identity()
    same = stride == 1 and inner == width
    self.downsample = nn.Identity() if same else projection(inner, width, stride)

  def forward(self, x):
    y = torch.relu(self.bn1(self.conv1(x)))
    y = self.se(self.bn2(self.conv2(y)))
    return torch.relu(y + self.downsample(x))


class Bottleneck(nn.Module):
  """1x1, 3x3, 1x1; `strides` says which of the first two is strided."""

  expansion = 4

  def __init__(self, inner, width, stride, *, gates, strides):
    super().__init__()
    outer = 4 * width
    first, second = (stride if which else 1 for which in strides)
    self.conv1 = nn.Conv2d(inner, width, 1, first, bias=False)
    self.bn1, self.conv2 = nn.BatchNorm2d(width), conv3x3(width, width, second)
    self.bn2, self.conv3 = nn.BatchNorm2d(width), nn.Conv2d(width, outer, 1, bias=False)
    self.bn3 = nn.BatchNorm2d(outer)
    self.se = Squeeze(outer, bias=True) if gates else nn.Identity()
    same = stride == 1 and inner == outer
    self.downsample = nn.Identity() if same else projection(inner, outer, stride)

  def forward(self, x):
    y = torch.relu(self.bn1(self.conv1(x)))
    y = torch.relu(self.bn2(self.conv2(y)))
    return torch.relu(self.se(self.bn3(self.conv3(y))) + self.downsample(x))


class ResNet(nn.Module):
  """Table 1 of He et al. (2015), as torchvision names it, or, with gates, timm.

  Strides are in the 3x3 of a bottleneck (torchvision), or in its first 1x1 (the paper).
  """

  def __init__(self, depth, *, width=64, gates=False, strides=(False, True), classes=1000):
    super().__init__()
    block, inner = (Bottleneck if depth >= 50 else Basic), width
    self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
    self.bn1, self.maxpool = nn.BatchNorm2d(width), nn.MaxPool2d(3, 2, 1)
    for number, count in enumerate(STAGES[depth]):
      layers = []
      for index in range(count):
        stride = 2 if number and not index else 1
        layers.append(block(inner, width << number, stride, gates=gates, strides=strides))
        inner = block.expansion * (width << number)
      setattr(self, f"layer{number + 1}", nn.Sequential(*layers))
    self.fc = nn.Linear(inner, classes)

  def forward(self, x):
    """The last map."""
    x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
    return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class Unit(nn.Module):
  """A unit of insightface: norms around both convolutions."""

  def __init__(self, inner, width, stride):
    super().__init__()
    self.bn1, self.conv1 = nn.BatchNorm2d(inner), conv3x3(inner, width)
    self.bn2, self.prelu = nn.BatchNorm2d(width), nn.PReLU(width)
    self.conv2, self.bn3 = conv3x3(width, width, stride), nn.BatchNorm2d(width)
    same = stride == 1 and inner == width
    self.downsample = nn.Identity() if same else projection(inner, width, stride)

  def forward(self, x):
    y = self.prelu(self.bn2(self.conv1(self.bn1(x))))
    return self.bn3(self.conv2(y)) + self.downsample(x)


class InsightFace(nn.Module):
  """The improved residual network of Deng et al. (2018), as insightface names it."""

  def __init__(self, depth, *, width=64, image_size=112, embedding=512):
    super().__init__()
    self.conv1, self.bn1, self.prelu = conv3x3(3, width), nn.BatchNorm2d(width), nn.PReLU(width)
    inner = width
    for number, count in enumerate(UNITS[depth]):
      units = []
      for index in range(count):
        units.append(Unit(inner, width << number, 1 if index else 2))
        inner = width << number
      setattr(self, f"layer{number + 1}", nn.Sequential(*units))
    self.bn2 = nn.BatchNorm2d(inner)
    self.fc = nn.Linear(inner * (image_size // 16) ** 2, embedding)
    self.features = nn.BatchNorm1d(embedding)

  def forward(self, x):
    """The embedding."""
    x = self.prelu(self.bn1(self.conv1(x)))
    x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
    return self.features(self.fc(self.bn2(x).flatten(1)))


class LeanUnit(nn.Module):
  """A unit of face.evoLVe: no norm between the convolutions."""

  def __init__(self, inner, width, stride, gates):
    super().__init__()
    if inner == width:
      self.shortcut_layer = nn.MaxPool2d(1, stride)
    else:
      self.shortcut_layer = projection(inner, width, stride)
    layers = [nn.BatchNorm2d(inner), conv3x3(inner, width), nn.PReLU(width)]
    layers += [conv3x3(width, width, stride), nn.BatchNorm2d(width)]
    self.res_layer = nn.Sequential(*layers, *[Squeeze(width, bias=False)] * gates)

  def forward(self, x):
    return self.res_layer(x) + self.shortcut_layer(x)


class Evolve(nn.Module):
  """IR and, with gates, IR-SE, as face.evoLVe names them."""

  def __init__(self, depth, *, width=64, image_size=112, embedding=512, gates=False):
    super().__init__()
    self.input_layer = nn.Sequential(conv3x3(3, width), nn.BatchNorm2d(width), nn.PReLU(width))
    units, inner = [], width
    for number, count in enumerate(UNITS[depth]):
      for index in range(count):
        units.append(LeanUnit(inner, width << number, 1 if index else 2, gates))
        inner = width << number
    self.body = nn.Sequential(*units)
    flat = inner * (image_size // 16) ** 2
    output = [nn.BatchNorm2d(inner), nn.Dropout(), nn.Flatten(), nn.Linear(flat, embedding)]
    self.output_layer = nn.Sequential(*output, nn.BatchNorm1d(embedding))

  def forward(self, x):
    """The embedding."""
    return self.output_layer(self.body(self.input_layer(x)))


def shapes(model):
  """Name -> shape of all parameters and statistics."""
  return {name: tuple(x.shape) for name, x in model.state_dict().items()}


def run(model, arrays, images):
  """What a model with these weights makes of images [batch, rows, columns, 3], channels last."""
  state = {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}
  model.load_state_dict(state)
  pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
  with torch.no_grad():
    return np.moveaxis(model.eval()(pixels).numpy(), 1, -1)
