"""Validation of arguments: annotated types, and a decorator that checks a function's arguments.

    @validated
    def classifier(num_classes: Size, dropout: Rate = 0.5, seed: Seed = 0) -> keras.Model: ...

    classifier(10, dropout=1)
    ValueError: `dropout` must be a number in [0, 1). Received: dropout=1

The annotations are the declaration. pydantic enforces them, strictly: no value is converted, except
that `operator.index` decides what a whole number is, and that a real number is passed on as a
float. pydantic is imported by the first call of a validated function, which keeps `import zoo`
fast. Relations between arguments are checked in the functions.
"""

from zoo.validation.decorator import validated as validated
from zoo.validation.rules import MAX_COUNT as MAX_COUNT
from zoo.validation.rules import MAX_ELEMENTS as MAX_ELEMENTS
from zoo.validation.rules import MAX_LAYERS as MAX_LAYERS
from zoo.validation.rules import Rule as Rule
from zoo.validation.rules import array as array
from zoo.validation.rules import check_lengths as check_lengths
from zoo.validation.rules import check_sizes as check_sizes
from zoo.validation.rules import each as each
from zoo.validation.rules import instance as instance
from zoo.validation.rules import number as number
from zoo.validation.rules import show as show
from zoo.validation.rules import whole as whole
from zoo.validation.types import ACTIVATION as ACTIVATION
from zoo.validation.types import KEY as KEY
from zoo.validation.types import SHAPE as SHAPE
from zoo.validation.types import TEXT as TEXT
from zoo.validation.types import Activation as Activation
from zoo.validation.types import Address as Address
from zoo.validation.types import AnyPath as AnyPath
from zoo.validation.types import ArgumentName as ArgumentName
from zoo.validation.types import Arrays as Arrays
from zoo.validation.types import Beams as Beams
from zoo.validation.types import Blocks as Blocks
from zoo.validation.types import Count as Count
from zoo.validation.types import DType as DType
from zoo.validation.types import Features as Features
from zoo.validation.types import FilePath as FilePath
from zoo.validation.types import Fraction as Fraction
from zoo.validation.types import Images as Images
from zoo.validation.types import ImageShape as ImageShape
from zoo.validation.types import Index as Index
from zoo.validation.types import JSONObject as JSONObject
from zoo.validation.types import Labels as Labels
from zoo.validation.types import Layers as Layers
from zoo.validation.types import Levels as Levels
from zoo.validation.types import Logits as Logits
from zoo.validation.types import Name as Name
from zoo.validation.types import NewTokens as NewTokens
from zoo.validation.types import NonNegative as NonNegative
from zoo.validation.types import Nucleus as Nucleus
from zoo.validation.types import Number as Number
from zoo.validation.types import NumberArray as NumberArray
from zoo.validation.types import Numbers as Numbers
from zoo.validation.types import Positive as Positive
from zoo.validation.types import Probability as Probability
from zoo.validation.types import RandomKey as RandomKey
from zoo.validation.types import Rate as Rate
from zoo.validation.types import Seed as Seed
from zoo.validation.types import Shape as Shape
from zoo.validation.types import Size as Size
from zoo.validation.types import Sizes as Sizes
from zoo.validation.types import Source as Source
from zoo.validation.types import TextList as TextList
from zoo.validation.types import Texts as Texts
from zoo.validation.types import Timesteps as Timesteps
from zoo.validation.types import TokenArray as TokenArray
from zoo.validation.types import TokenId as TokenId
from zoo.validation.types import TokenIds as TokenIds
from zoo.validation.types import TokenRows as TokenRows
from zoo.validation.types import TokenSequences as TokenSequences
from zoo.validation.types import Vocabulary as Vocabulary
