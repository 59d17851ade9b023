"""Layers of the models: convolutions, dense layers, attention, recurrent layers, blocks."""

from zoo.layers.attention import Attention as Attention
from zoo.layers.core import Conv2D as Conv2D
from zoo.layers.core import Dense as Dense
from zoo.layers.core import Embedding as Embedding
from zoo.layers.core import GroupNormalization as GroupNormalization
from zoo.layers.core import MaxPooling2D as MaxPooling2D
from zoo.layers.recurrent import GRU as GRU
from zoo.layers.recurrent import LSTM as LSTM
from zoo.layers.recurrent import SimpleRNN as SimpleRNN
from zoo.layers.transformer_block import TransformerBlock as TransformerBlock
