"""keras-zoo: the architectures of one deep-learning document, with equal results on 3 backends."""

import zoo_command as zoo_command  # before Keras, whose import takes seconds
from zoo import backends as backends  # first: checks that the backend is installed
from zoo._version import __version__ as __version__
from zoo.datasets import augmentation as augmentation  # a saved `Trainer` may hold its layer

# ruff: isort: off
# In the order of the document, which `zoo list` follows.
from zoo.models.mlp import mlp as mlp
from zoo.models.cnn import cnn_48x48 as cnn_48x48
from zoo.models.rnn import rnn_classifier as rnn_classifier
from zoo.models.rnn import rnn_language_model as rnn_language_model
from zoo.models.transformer import transformer as transformer
from zoo.models.gpt import gpt as gpt
from zoo.models.unet import unet as unet
from zoo.models.autoencoder import autoencoder as autoencoder
from zoo.models.text_to_image import text_to_image as text_to_image

# ruff: isort: on
from zoo.pretrained import list_weights as list_weights
from zoo.pretrained import load as load
from zoo.training.trainer import Trainer as Trainer

__all__ = [
    "Trainer",
    "autoencoder",
    "cnn_48x48",
    "gpt",
    "list_weights",
    "load",
    "mlp",
    "rnn_classifier",
    "rnn_language_model",
    "text_to_image",
    "transformer",
    "unet",
]
