"""keras-zoo: the architectures of one deep-learning document, the same on three backends."""

from zoo import backends as backends  # first: it checks that the backend asked for is there
from zoo._version import __version__ as __version__
from zoo.cnn import cnn_48x48 as cnn_48x48

__all__ = ["cnn_48x48"]
