"""Tasks: trained models with their preprocessing, for one line.

    zoo.load("mlp-mnist").classify("digit.png")

    task.py     what all tasks have: the model and its card
    images.py   classification and sampling of images
    photos.py   image files and arrays as a classifier reads them
    text.py     completion, next words, translation
    command.py  commands of the command line

`zoo.load` opens weights of the package, a weights folder or a finished run.
"""

from zoo import registry
from zoo.diffusion.pipeline import DiffusionPipeline
from zoo.files.classifiers import is_image_classifier, read_settings
from zoo.files.weights import WeightsFolder, open_saved
from zoo.generation import completion
from zoo.tasks.images import ImageClassifier as ImageClassifier
from zoo.tasks.images import ImageSampler as ImageSampler
from zoo.tasks.task import Task as Task
from zoo.tasks.text import NextWord as NextWord
from zoo.tasks.text import TextCompletion as TextCompletion
from zoo.tasks.text import Translator as Translator
from zoo.validation import ArgumentName, Source, validated

_TEXT_TASKS: dict[str, type[TextCompletion | Translator]] = {
    "gpt": TextCompletion,
    "rnn_language_model": NextWord,
    "transformer": Translator,
}


@validated
def load(source: Source, argument: ArgumentName = "source") -> Task:
    """Loads a trained model as the task that it was trained for, as `zoo.load` does.

    Args:
        source: Name of weights in the package, a weights folder, or the directory of a finished
            run.
        argument: Name of the argument `source` in error messages.

    Raises:
        ValueError: If there is no such model, the run is not finished, or a file has changed, is
            damaged or does not fit; the text names it.
        OSError: If a file cannot be read.
    """
    saved = open_saved(source, argument=argument)
    card = saved.card if isinstance(saved, WeightsFolder) else None
    builder = saved.document().builder
    if builder in _TEXT_TASKS:
        model, tokenizer = completion.load_run(source)
        return _TEXT_TASKS[builder](model, tokenizer, card)
    if builder in ("unet", "text_to_image"):
        return ImageSampler(DiffusionPipeline.load(source), card)
    model = saved.load_model()
    if registry.get(builder).images and is_image_classifier(saved):
        settings = read_settings(saved)
        return ImageClassifier(model, settings.mean, settings.std, settings.labels, card)
    return Task(model, card)
