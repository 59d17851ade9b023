"""Data sets, data augmentation and tokenization."""

from zoo.datasets.images import ImageDataset as ImageDataset
from zoo.datasets.images import load as load
