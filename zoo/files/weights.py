"""Weights folders: a trained model in safetensors, and a card that says all about it.

model.safetensors  the weights, by their paths in the model
card.json          builder and arguments, digests of the other files, origin and metrics
and what the task needs: vocabulary.json; diffusion.json, prompts.json; autoencoder.json with
autoencoder.safetensors

The package has such folders in `zoo/weights/`, and a finished run can be used as one.
"""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import keras
from pydantic import Field, JsonValue, StringConstraints

from zoo import registry
from zoo.files import documents, models, tensors
from zoo.files.runs import FinishedRun
from zoo.files.saved import FileRecords, SavedModel
from zoo.validation import AnyPath, show

PACKED = Path(__file__).parents[1] / "weights"
CARD = "card.json"
# The part of the test data on which a card has metrics besides, which takes seconds.
PART = {"images": 300, "tokens": 3000, "pairs": 8, "samples": 10, "steps": 5, "real": 100}

# Arguments of builders that change neither the weights nor what an inference computes from them.
_FREE_ARGUMENTS = ("dropout", "dtype", "name", "seed")
_ADVICE = "Restore the folder, such as from the package that it came with"

Text = Annotated[str, StringConstraints(min_length=1, max_length=2000)]
MetricValues = Annotated[dict[Text, float], Field(min_length=1, max_length=100)]
Channels = Annotated[list[float], Field(min_length=1, max_length=3)]
Scales = Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1, max_length=3)]


class Data(documents.Document):
    """Data that a model was trained on and evaluated with.

    Attributes:
        name: Name of the data set.
        split: Parts for training and for the metrics.
        licence: Licence of the data.
    """

    name: Text
    split: Text
    licence: Text


class Normalization(documents.Document):
    """Preprocessing of images: (pixel / 255 - mean) / std.

    Attributes:
        mean: Mean of each channel of the images, with pixels in [0, 1].
        std: Standard deviation of each channel.
    """

    mean: Channels
    std: Scales


class Training(documents.Document):
    """Origin of trained weights.

    Attributes:
        command: Command line of the recipe.
        seed: Seed of the run.
        commit: Commit of the repository.
        backend: Backend of the training, with its version.
        keras: Version of Keras.
        seconds: Seconds of the training.
        machine: Hardware.
    """

    command: Text
    seed: Annotated[int, Field(ge=0)]
    commit: Text
    backend: Text
    keras: Text
    seconds: Annotated[float, Field(ge=0)]
    machine: Text


class Metrics(documents.Document):
    """Metrics of the stored weights on one backend.

    Attributes:
        whole: Metrics on the whole test data.
        part: The same on the part of it that `PART` fixes.
    """

    whole: MetricValues
    part: MetricValues


class Card(documents.Document):
    """Content of `card.json`.

    Attributes:
        builder: Name of the model's builder.
        arguments: All arguments of the builder.
        parameters: Number of parameters.
        storage_dtype: Type of the stored numbers.
        files: Size and SHA-256 of each other file of the folder.
        data: Data of the training and of the metrics.
        normalization: Preprocessing of a classifier's images; None for other models.
        labels: Name of each class of a classifier; None for other models.
        training: Origin of the weights.
        metrics: Metrics of the stored weights, by backend.
        limits: Known limits of the model.
        licence: Licence of the weights.
    """

    builder: Annotated[str, Field(max_length=100)]
    arguments: dict[str, JsonValue]
    parameters: Annotated[int, Field(ge=1)]
    storage_dtype: tensors.StorageDType
    files: FileRecords
    data: Data
    normalization: Normalization | None
    labels: Annotated[list[Text], Field(min_length=1, max_length=1 << 20)] | None
    training: Training
    metrics: dict[Literal["jax", "tensorflow", "torch"], Metrics]
    limits: list[Text]
    licence: Text


class WeightsFolder(SavedModel):
    """Folder of trained weights, whose files are verified before they are read.

    Args:
        folder: The folder.
        needs: Names of files that it must have.

    Attributes:
        card: Content of `card.json`.

    Raises:
        ValueError: If the folder is not there, or its card is damaged or lacks a file.
        OSError: If the card cannot be read.
    """

    weights_suffix = ".safetensors"

    def __init__(self, folder: AnyPath, needs: Sequence[str] = ()):
        path = Path(folder)
        self.card = documents.read(path / CARD, Card, _ADVICE)
        super().__init__(path, self.card.files, CARD, "the weights were packed", _ADVICE)
        for name in ("model.safetensors", *needs):
            self._record(name)

    def document(self, name: str = "model") -> models.ModelDocument:
        """Returns the builder and the arguments of a model; those of "model" are in the card."""
        if name != "model":
            return super().document(name)
        content = documents.dump({"builder": self.card.builder, "arguments": self.card.arguments})
        return documents.parse(content, models.ModelDocument, str(self.folder / CARD), self._remedy)

    def document_file(self, name: str) -> str:
        """Name of the file with the builder and the arguments of a model."""
        return CARD if name == "model" else super().document_file(name)

    def load_model(
        self,
        name: str = "model",
        builders: Sequence[str] = (),
        arguments: Mapping[str, Any] | None = None,
    ) -> keras.Model:
        """Builds a model of the folder and loads its weights, as `SavedModel.load_model` does."""
        model = super().load_model(name, builders, arguments)
        if name == "model" and model.count_params() != self.card.parameters:
            raise ValueError(
                f"{self.folder / CARD}: `parameters` must be {model.count_params():,}, those of "
                f"the model. Received: {self.card.parameters:,}. {self._remedy}"
            )
        return model


def shown(name: str, metric: float) -> str:
    """A metric with the digits that are shown: one decimal from 10 on, three from 1 on, or four.

    Metrics of 1,000 samples differ by some percent from seed to seed: diversities have two
    decimals, Fréchet distances none.
    """
    decimals = 4 if abs(metric) < 1 else 3 if abs(metric) < 10 else 1
    if name == "intra_class_diversity":
        decimals = 2
    elif name.startswith("frechet"):
        decimals = 0
    return f"{metric:.{decimals}f}"


def packed_names() -> list[str]:
    """Names of the weights in the package."""
    return sorted(path.parent.name for path in PACKED.glob(f"*/{CARD}"))


def open_saved(
    source: AnyPath,
    recipes: Sequence[str] = (),
    needs: Sequence[str] = (),
    argument: str = "run_dir",
) -> SavedModel:
    """Opens a weights folder or a finished run.

    Args:
        source: Name of weights in the package, a weights folder, or the directory of a finished
            run.
        recipes: Names of the recipes that write such runs, for error messages.
        needs: Names of files that the folder must have, besides those of the model.
        argument: Name of the argument `source` in error messages.

    Raises:
        ValueError: If there are no such weights, the run is not finished, a file is missing, or
            the list of files is damaged.
        OSError: If a file cannot be read.
    """
    names = packed_names()
    if str(source) in names:
        return WeightsFolder(PACKED / source, needs)
    folder = Path(source)
    if (folder / CARD).exists():
        return WeightsFolder(folder, needs)
    if not folder.is_dir():
        raise ValueError(
            f"`{argument}` must be one of {', '.join(names)}, a weights folder, or the directory "
            f"of a finished run. Received: {argument}={str(source)!r}"
        )
    return FinishedRun(folder, recipes, ("model.json", "model.weights.h5", *needs), argument)


def build_pretrained(builder: str, weights: AnyPath, arguments: Mapping[str, Any]) -> keras.Model:
    """Builds a trained model, as the argument `weights` of a builder asks for.

    Args:
        builder: Name of the builder.
        weights: As `source` of `open_saved`; or the data in the name of packed weights, such as
            "mnist" for "mlp-mnist" if the builder is `mlp`.
        arguments: Arguments that the caller gives besides. They must be those of the trained
            model, except for the dropout rate, the dtype, the name and the seed.

    Raises:
        ValueError: If there are no such weights, they are another builder's, or an argument
            differs from that of the trained model; the text names it.
        OSError: If a file cannot be read.
    """
    names = [name for name in packed_names() if name.endswith(f"-{weights}")]
    if names and str(weights) not in packed_names():
        saved = _only_match(names, builder, weights, arguments)
    else:
        saved = open_saved(weights, argument="weights")
    trained = saved.document()
    if trained.builder != builder:
        raise ValueError(
            f"`weights` must be those of a `{builder}`. Received: weights={str(weights)!r}, those "
            f"of a `{trained.builder}`"
        )
    for name in _differing(trained, arguments):
        raise ValueError(
            f"`{name}` must be {show(_trained_value(trained, name))}, as the trained model has it. "
            f"Received: {name}={show(arguments[name])}, weights={str(weights)!r}. Leave `{name}` "
            "out, or build the model without `weights`"
        )
    return saved.load_model(arguments=arguments)


def _only_match(
    names: Sequence[str], builder: str, weights: AnyPath, arguments: Mapping[str, Any]
) -> SavedModel:
    """The packed weights of a builder that fit the arguments."""
    candidates = {name: WeightsFolder(PACKED / name) for name in names}
    candidates = {name: x for name, x in candidates.items() if x.card.builder == builder}
    if len(candidates) > 1:  # such as those of several recurrent cells
        candidates = {
            name: x for name, x in candidates.items() if not _differing(x.document(), arguments)
        }
    if len(candidates) != 1:
        raise ValueError(
            f"`weights` must name one model of `{builder}` with these arguments. Received: "
            f"weights={str(weights)!r}, for {', '.join(candidates) or 'none'} of "
            f"{', '.join(names)}. Give the whole name, and no argument that differs from the card"
        )
    return next(iter(candidates.values()))


def _differing(trained: models.ModelDocument, arguments: Mapping[str, Any]) -> list[str]:
    """Names of the arguments that differ from those of a trained model."""
    return [
        name
        for name, value in arguments.items()
        if name not in _FREE_ARGUMENTS and _plain(value) != _plain(_trained_value(trained, name))
    ]


def _trained_value(trained: models.ModelDocument, name: str) -> Any:
    """Argument of a trained model; the default of one that the builder got since then."""
    parameters = inspect.signature(registry.get(trained.builder).build).parameters
    return trained.arguments.get(name, parameters[name].default)


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
