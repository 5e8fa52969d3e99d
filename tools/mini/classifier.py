"""What judges the pictures of kinora-mini and the films of kinora-mini-video."""
from torch import nn


class Classifier(nn.Module):
    """Which things are in a picture: [B, 3, 256, 256] in [-1, 1] -> one logit for each thing."""

    def __init__(self, things, widths=(32, 64, 128, 192, 256)):
        super().__init__()
        layers, before = [nn.Conv2d(3, widths[0], 3, 2, 1), nn.ReLU()], widths[0]
        for width in widths:
            layers += [nn.Conv2d(before, width, 3, 2 if width != widths[0] else 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
                       nn.Conv2d(width, width, 3, 1, 1, groups=width, bias=False), nn.Conv2d(width, width, 1, bias=False),
                       nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Conv2d(before, things, 1)

    def forward(self, x):
        return self.head(self.features(x)).amax(dim=(2, 3))
