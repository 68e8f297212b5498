"""The networks of the course, in the order in which the notebooks meet them.

Every network takes float images of shape ``(N, 1, 28, 28)``, normalised by ``utils.normalize``, and returns logits of
shape ``(N, 10)``: one unnormalised score per digit, to be given to ``torch.nn.functional.cross_entropy``.
"""

import torch
from torch import nn


class DigitClassifier(nn.Module):
    """What all the networks share: a chain of layers, and a check of what goes in.

    A subclass fills ``self.layers``, a chain that turns ``(N, 1, 28, 28)`` into ``(N, 10)`` or ``(N, 10, 1, 1)``.
    """

    layers: nn.Sequential

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits, ``(N, 10)``, of float images, ``(N, 1, 28, 28)``.

        Raises:
            ValueError: the images have another shape, or are not floating point.
        """
        if images.dim() != 4 or images.shape[1:] != (1, 28, 28):
            raise ValueError(f"expected images of shape (N, 1, 28, 28), got {tuple(images.shape)}")
        if not images.is_floating_point():
            raise ValueError(f"expected float images (see utils.normalize), got {images.dtype}")
        return self.layers(images).flatten(1)


class LeNet5(DigitClassifier):
    """The baseline that everyone knows: two convolutions, then three fully connected layers. Notebook 1.

    61,706 parameters, of which 59,134 are in the fully connected layers. The last convolution has a receptive field of
    16 × 16 pixels after pooling; the fully connected layers see the whole image.

    Source: LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", 1998; with
    ReLU and max pooling instead of the paper's scaled tanh and trainable subsampling, as most courses teach it.
    """

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 6, 5, padding=2),  # 28 x 28
            nn.ReLU(),
            nn.MaxPool2d(2),  # 14 x 14
            nn.Conv2d(6, 16, 5),  # 10 x 10
            nn.ReLU(),
            nn.MaxPool2d(2),  # 5 x 5
            nn.Flatten(),
            nn.Linear(16 * 5 * 5, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, 10),
        )


class ConvLeNet(DigitClassifier):
    """LeNet-5 with its fully connected layers cut off: a 1 × 1 convolution scores each place, and the mean counts.

    2,742 parameters. Receptive field of one score: 16 × 16 pixels, a bit more than a quarter of the image. Notebook 2.

    Source: the global average pooling of Lin, Chen and Yan, "Network in network", 2013.
    """

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 6, 5, padding=2),  # 28 x 28
            nn.ReLU(),
            nn.MaxPool2d(2),  # 14 x 14
            nn.Conv2d(6, 16, 5),  # 10 x 10
            nn.ReLU(),
            nn.MaxPool2d(2),  # 5 x 5
            nn.Conv2d(16, 10, 1),
            nn.AvgPool2d(5),  # 1 x 1
        )


class Skeleton(DigitClassifier):
    """A fully convolutional network of small filters: five 3 × 3 convolutions, a 1 × 1 head, a global average.

    15,962 parameters without BatchNorm, 16,166 with it. Receptive field of one score: 18 × 18 pixels.
    Notebook 2 (plain) and notebooks 3 to 5 (with BatchNorm, with dropout).

    Args:
        batch_norm: put a BatchNorm2d after every 3 × 3 convolution, before its ReLU.
        dropout: probability, 0 to 1, with which Dropout2d removes a whole channel after every ReLU; 0 adds no layer.
    """

    def __init__(self, batch_norm: bool = False, dropout: float = 0.0):
        super().__init__()

        def block(in_channels: int, out_channels: int) -> list[nn.Module]:
            layers = [nn.Conv2d(in_channels, out_channels, 3, bias=False)]
            if batch_norm:
                layers.append(nn.BatchNorm2d(out_channels))
            layers.append(nn.ReLU())
            if dropout:
                layers.append(nn.Dropout2d(dropout))
            return layers

        self.layers = nn.Sequential(
            *block(1, 10),  # 26 x 26
            *block(10, 16),  # 24 x 24
            nn.MaxPool2d(2),  # 12 x 12
            *block(16, 20),  # 10 x 10
            *block(20, 24),  # 8 x 8
            *block(24, 32),  # 6 x 6
            nn.Conv2d(32, 10, 1, bias=False),
            nn.AvgPool2d(6),  # 1 x 1
        )


class Net20k(DigitClassifier):
    """The network of the 20,000-parameter assignment, row for row. Notebook 6.

    14,157 parameters; 44 rows in torchsummary's table. Receptive field of one score, before the average: 58 × 58
    pixels, so every score can see the whole image. Its first two pooling layers pad by one pixel (28 to 15, 17 to 9),
    and the 1 × 1 convolution after the first one pads too (15 to 17): a border of zeros, where no image is.

    Args:
        dropout: probability, 0 to 1, of every Dropout2d; 0.01 in the assignment.

    Source: the assignment "99.4 % validation accuracy, less than 20k parameters, less than 20 epochs".
    """

    def __init__(self, dropout: float = 0.01):
        super().__init__()

        def block(in_channels: int, out_channels: int) -> list[nn.Module]:
            return [
                nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(),
                nn.Dropout2d(dropout),
            ]

        self.layers = nn.Sequential(
            *block(1, 3),  # 28 x 28
            *block(3, 8),
            *block(8, 16),
            nn.MaxPool2d(2, padding=1),  # 15 x 15
            nn.Conv2d(16, 8, 1, padding=1, bias=False),  # 17 x 17
            nn.BatchNorm2d(8),
            *block(8, 16),
            *block(16, 16),
            *block(16, 16),
            nn.MaxPool2d(2, padding=1),  # 9 x 9
            nn.Conv2d(16, 16, 1, bias=False),
            nn.BatchNorm2d(16),
            *block(16, 16),
            # The assignment's table has ReLU before BatchNorm here, and nowhere else.
            nn.Conv2d(16, 16, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.BatchNorm2d(16),
            nn.Dropout2d(dropout),
            nn.MaxPool2d(2),  # 4 x 4
            nn.Conv2d(16, 16, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.Conv2d(16, 10, 3, padding=1, bias=False),
            nn.BatchNorm2d(10),
            nn.AvgPool2d(4),  # 1 x 1
        )


class Net8k(DigitClassifier):
    """The network of the 8,000-parameter assignment, row for row. Notebook 7.

    7,568 parameters; 21 rows in torchsummary's table. Receptive field of one score: 20 × 20 pixels, about the size of
    a digit. Its convolutions do not pad, and ReLU comes before BatchNorm.

    Source: the assignment "Training MNIST under 8k parameters".
    """

    def __init__(self):
        super().__init__()

        def block(in_channels: int, out_channels: int) -> list[nn.Module]:
            return [
                nn.Conv2d(in_channels, out_channels, 3, bias=False),
                nn.ReLU(),
                nn.BatchNorm2d(out_channels),
            ]

        self.layers = nn.Sequential(
            *block(1, 8),  # 26 x 26
            *block(8, 9),  # 24 x 24
            *block(9, 10),  # 22 x 22
            nn.MaxPool2d(2),  # 11 x 11
            *block(10, 12),  # 9 x 9
            *block(12, 16),  # 7 x 7
            *block(16, 20),  # 5 x 5
            nn.Conv2d(20, 10, 1, bias=False),
            nn.AvgPool2d(5),  # 1 x 1
        )


class NetFast(DigitClassifier):
    """A network made to train fast on a processor: 99 % after two epochs. Notebook 8.

    18,010 parameters; 0.4 million multiply-adds for an image. Convolutions with a stride of 2 take the place of
    pooling: the maps are small from the first layer on. All widths are multiples of 16, the numbers that one
    instruction of many current processors handles. Receptive field of one score: 25 × 25 pixels.
    """

    def __init__(self):
        super().__init__()

        def block(in_channels: int, out_channels: int, kernel_size: int, stride: int) -> list[nn.Module]:
            return [
                nn.Conv2d(in_channels, out_channels, kernel_size, stride, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(),
            ]

        self.layers = nn.Sequential(
            *block(1, 16, 5, 2),  # 12 x 12
            *block(16, 16, 3, 1),  # 10 x 10
            *block(16, 32, 3, 2),  # 4 x 4
            *block(32, 32, 3, 1),  # 2 x 2
            nn.Conv2d(32, 10, 2),  # 1 x 1
        )


class NetTiny(DigitClassifier):
    """The smallest networks of the course that reach 99.4 % in the mean of ten seeds. Notebook 12.

    2,946 parameters. In its four blocks, a 3 × 3 filter looks at one channel only (``groups``), and a 1 × 1 convolution
    then mixes the channels. The maps are small from the pooling on, which makes the network fast.
    The average of each map comes before the 1 × 1 head; after it, it would give the same logits for more work.
    Receptive field of one place of the last maps: 22 × 22 pixels.

    Args:
        widths: the number of channels after the first convolution and after each of the four blocks.
        shared: whether the last three blocks use the same two convolutions, each with a BatchNorm of its own. With the
            widths ``(16, 28, 28, 28, 28)``, the network then has 2,574 parameters.

    Raises:
        ValueError: the blocks are to share, but the last four widths are not the same.

    Source: depthwise-separable convolutions from Sifre, "Rigid-motion scattering for image classification" (thesis),
    2014, and Howard et al., "MobileNets: efficient convolutional neural networks for mobile vision applications", 2017
    (there with BatchNorm and ReLU between the two convolutions); SiLU from Elfwing, Uchibe and Doya, "Sigmoid-weighted
    linear units for neural network function approximation in reinforcement learning", 2017.
    """

    def __init__(self, widths: tuple[int, int, int, int, int] = (16, 16, 20, 20, 24), shared: bool = False):
        super().__init__()
        if shared and len(set(widths[1:])) > 1:
            raise ValueError(f"expected the last four widths to be the same, for blocks that share, got {widths}")

        def block(in_channels: int, out_channels: int) -> list[nn.Module]:
            return [
                nn.Conv2d(in_channels, in_channels, 3, groups=in_channels, bias=False),
                nn.Conv2d(in_channels, out_channels, 1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.SiLU(),
            ]

        self.layers = nn.Sequential(
            nn.Conv2d(1, widths[0], 5, bias=False),  # 24 x 24
            nn.MaxPool2d(2),  # 12 x 12
            nn.BatchNorm2d(widths[0]),
            nn.SiLU(),
            *block(widths[0], widths[1]),  # 10 x 10
            *block(widths[1], widths[2]),  # 8 x 8
            *block(widths[2], widths[3]),  # 6 x 6
            *block(widths[3], widths[4]),  # 4 x 4
            nn.AvgPool2d(4),  # 1 x 1
            nn.Conv2d(widths[4], 10, 1),
        )
        if shared:
            for start in (12, 16):  # where the third and the fourth block begin
                self.layers[start], self.layers[start + 1] = self.layers[8], self.layers[9]


class NetLoop(DigitClassifier):
    """One separable block, used six times: fewer than 2,000 parameters, and 99.4 % nearly reached. Notebook 12.

    1,970 parameters. The depthwise and the pointwise convolution of all six blocks are the same two layers; each block
    has a BatchNorm of its own. Two blocks pad, so that the maps do not shrink too soon.
    Receptive field of one place of the last maps: 28 × 28 pixels.

    Source: see ``NetTiny``; weights that are used again layer after layer, from Eigen, Rolfe, Fergus and LeCun,
    "Understanding deep architectures using a recursive convolutional network", 2013.
    """

    def __init__(self):
        super().__init__()
        depthwise = nn.Conv2d(28, 28, 3, groups=28, bias=False)
        pointwise = nn.Conv2d(28, 28, 1, bias=False)

        def block() -> list[nn.Module]:
            return [depthwise, pointwise, nn.BatchNorm2d(28), nn.SiLU()]

        self.layers = nn.Sequential(
            nn.Conv2d(1, 28, 3, bias=False),  # 26 x 26
            nn.MaxPool2d(2),  # 13 x 13
            nn.BatchNorm2d(28),
            nn.SiLU(),
            nn.ZeroPad2d(1),
            *block(),  # 13 x 13
            *block(),  # 11 x 11
            nn.ZeroPad2d(1),
            *block(),  # 11 x 11
            *block(),  # 9 x 9
            *block(),  # 7 x 7
            *block(),  # 5 x 5
            nn.AvgPool2d(5),  # 1 x 1
            nn.Conv2d(28, 10, 1),
        )


class Best8k(NetTiny):
    """The most accurate network of the course below 8,000 parameters: the shape of ``NetTiny``, wider. Notebook 12.

    7,918 parameters. Receptive field of one place of the last maps: 22 × 22 pixels.
    """

    def __init__(self):
        super().__init__(widths=(24, 32, 36, 40, 48))


class Best20k(NetTiny):
    """The shape of ``NetTiny``, wider, below 20,000 parameters. Notebook 12.

    19,098 parameters. No more accurate than ``Net20k``, but trained in less time on two processor cores.
    Receptive field of one place of the last maps: 22 × 22 pixels.
    """

    def __init__(self):
        super().__init__(widths=(32, 48, 64, 64, 96))
