"""Image tasks: classification, and sampling with a diffusion model."""

from collections.abc import Sequence
from typing import Annotated, Any

import keras
import numpy as np

from zoo.datasets.augmentation import ImageAugmentation, resize
from zoo.datasets.images import check_images
from zoo.diffusion.pipeline import DiffusionPipeline
from zoo.files.weights import Card
from zoo.tasks.photos import read_image
from zoo.tasks.task import Task
from zoo.training import Batches, Trainer
from zoo.validation import Images, Size, TextList, each, number, validated


class ImageClassifier(Task):
    """Classifier of images, with its preprocessing and the names of its classes.

    Args:
        model: Model from images to logits.
        mean: Mean of each channel of the training images, with pixels in [0, 1].
        std: Standard deviation of each channel.
        labels: Name of each class; by default its number.
        card: Card of its weights folder; None for a run.

    Raises:
        ValueError: If `labels` are not as many as the model has classes.
    """

    @validated
    def __init__(
        self,
        model: keras.Model,
        mean: Annotated[Sequence[float], each(number(), 1, 3)],
        std: Annotated[Sequence[float], each(number("(0, inf)"), 1, 3)],
        labels: TextList | None = None,
        card: Card | None = None,
    ):
        super().__init__(model, card)
        classes, shape = int(model.outputs[0].shape[-1]), model.inputs[0].shape[1:]
        self.labels = labels or tuple(map(str, range(classes)))
        if len(self.labels) != classes:
            raise ValueError(
                f"`labels` must be the names of the {classes} classes of the model. Received: "
                f"{len(self.labels)} names"
            )
        self.preprocessing = ImageAugmentation(mean, std, shape=shape)
        self.size = int(shape[0])
        self.channels = len(mean)
        self._trainer = Trainer(model, self.preprocessing)

    @validated
    def classify(self, image: Any, top: Size = 5) -> list[tuple[str, float]]:
        """Classifies one image.

        Args:
            image: Path of an image file, a Pillow image, or a uint8 array (H, W), (H, W, 1),
                (H, W, 3) or (H, W, 4), of any size and mode.
            top: Largest number of classes to return.

        Returns:
            (label, probability) pairs in descending order of probability.

        Raises:
            ValueError: If a file is no image, or an array is of another shape or type.
            OSError: If there is no such file.
        """
        (probabilities,) = self.probabilities(read_image(image, self.channels)[None])
        order = np.argsort(-probabilities, kind="stable")[:top]
        return [(self.labels[index], float(probabilities[index])) for index in order]

    @validated
    def probabilities(self, images: Images) -> np.ndarray:
        """Computes the probability of each class, (N, classes), of images, (N, H, W, C) uint8.

        Raises:
            ValueError: If `images` are of another shape or type.
        """
        check_images(images)
        if images.shape[1:3] != (self.size, self.size):
            images = resize(images, self.size)
        logits = self._trainer.predict(Batches(images, batch_size=256), verbose=0)
        exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True), dtype=np.float64)
        return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


class ImageSampler(Task):
    """Diffusion model that samples images, of prompts if it reads them.

    Args:
        pipeline: Trained model with its schedule and its tokenizer.
        card: Card of its weights folder; None for a run.
    """

    @validated
    def __init__(self, pipeline: DiffusionPipeline, card: Card | None = None):
        super().__init__(pipeline.model, card)
        self.pipeline = pipeline

    @validated
    def sample(self, prompts: TextList | Size, **options: Any) -> np.ndarray:
        """Samples one image for each prompt, (N, H, W, C) in [-1, 1].

        Args:
            prompts: Texts, or the number of images for a model without prompts.
            **options: Further arguments of `DiffusionPipeline.sample`, such as `steps`,
                `guidance_scale`, `negative_prompt` and `seed`.

        Raises:
            ValueError: If a prompt has unknown words, or an argument is invalid.
        """
        return self.pipeline.sample(prompts, **options)
