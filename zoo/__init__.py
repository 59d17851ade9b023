"""keras-zoo: the architectures of one deep-learning document, the same on three backends."""

from zoo import backends as backends  # first: it checks that the backend asked for is there
from zoo._version import __version__ as __version__
from zoo.cnn import cnn_48x48 as cnn_48x48
from zoo.diffusion.autoencoder import autoencoder as autoencoder
from zoo.diffusion.text_to_image import text_to_image as text_to_image
from zoo.diffusion.unet import unet as unet
from zoo.gpt import gpt as gpt
from zoo.mlp import mlp as mlp
from zoo.rnn import rnn_classifier as rnn_classifier
from zoo.rnn import rnn_language_model as rnn_language_model
from zoo.transformer import transformer as transformer

__all__ = [
    "autoencoder",
    "cnn_48x48",
    "gpt",
    "mlp",
    "rnn_classifier",
    "rnn_language_model",
    "text_to_image",
    "transformer",
    "unet",
]
