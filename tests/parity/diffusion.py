"""Training and sampling of a small text-to-image model, for a worker."""

from typing import Any

import keras
import numpy as np
from keras import ops

import zoo
from zoo import datasets
from zoo.diffusion.losses import DiffusionTrainer
from zoo.diffusion.pipeline import DiffusionPipeline, DiffusionSpec
from zoo.diffusion.prompts import WordTokenizer, prompts_by_class
from zoo.training import Adam, Batches

BATCH = 32
STEPS = 60  # of one pass over the training images
TOKENIZER = WordTokenizer([prompt for prompts in prompts_by_class() for prompt in prompts])
PROMPTS = ["a handwritten seven", "the digit 3", "zero", "draw a 4"]


def small_model() -> keras.Model:
    return zoo.text_to_image(
        len(TOKENIZER), TOKENIZER.max_length, hidden_dim=32, channels=(8, 16, 32)
    )


def train(steps: int) -> tuple[list[float], list[np.ndarray]]:
    """Trains the model from one seed; returns the loss of every step and the trained weights."""
    data = datasets.load("mnist", train_examples=STEPS * BATCH, test_examples=1)
    model = small_model()
    prompts = np.stack([TOKENIZER.encode(prompts) for prompts in prompts_by_class()])
    trainer = DiffusionTrainer(model, DiffusionSpec().make_diffusion(), 0, prompts)
    trainer.compile(Adam(2e-3, global_clipnorm=1.0))
    examples = {"image": data.x_train, "label": data.y_train}
    batches = Batches(examples, BATCH, seed=0, steps_per_epoch=1)
    losses = trainer.fit(batches, epochs=steps, verbose=0).history["loss"]
    return losses, [np.array(ops.convert_to_numpy(w.value)) for w in model.trainable_variables]


def sample_images(weights: list[np.ndarray], cases: list[dict[str, Any]]) -> list[np.ndarray]:
    """Samples images of `PROMPTS` from a model with the given weights, for each set of options."""
    model = small_model()
    for variable, value in zip(model.trainable_variables, weights):
        variable.assign(value)
    pipeline = DiffusionPipeline(model, DiffusionSpec(), TOKENIZER)
    return [pipeline.sample(PROMPTS, **options) for options in cases]
