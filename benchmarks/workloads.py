"""Workloads of the speed benchmark: sizes, data, the zoo's code for them and their arithmetic.

A workload is what all contenders of a row do. Its floating-point operations are counted by formula:
two for each weight of a kernel and each position that the kernel is applied to, and two for each
product of attention between positions that see each other. A training step takes three times those
of the outputs: the gradients of the weights and of the inputs take as many each, except that images
and token ids need no gradient.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

import zoo
from zoo.datasets.augmentation import ImageAugmentation
from zoo.diffusion.gaussian_diffusion import GaussianDiffusion
from zoo.diffusion.losses import DiffusionTrainer
from zoo.diffusion.noise_schedule import cosine
from zoo.diffusion.prompts import WordTokenizer, prompts_by_class
from zoo.diffusion.sampler import Sampler
from zoo.generation.sampling import generate
from zoo.layers.attention import sinusoidal_table
from zoo.layers.transformer_block import TransformerBlock
from zoo.training import Adam, AdamW, Batches, CrossEntropy

MEAN, STD = 0.1307, 0.3081  # of MNIST
DECAY = 0.01
MOMENTUM = 0.999  # of the average of a diffusion model's weights
Weights = dict[str, np.ndarray]


def weights_of(network: keras.Model) -> Weights:
    """Trainable weights by path, as the native code takes them."""
    return {v.path: ops.convert_to_numpy(v.value) for v in network.trainable_variables}


def cosine_schedule(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors of the image and of the noise after each step, (steps,) float32 each."""
    schedule = cosine(steps)
    return schedule.signal.astype(np.float32), schedule.sigma.astype(np.float32)


def sinusoids(length: int, dim: int) -> np.ndarray:
    """Position encodings, (length, dim) float32."""
    return sinusoidal_table(length, dim).astype(np.float32)


def kernel_flops(network: keras.Model) -> float:
    """Operations of an image network's outputs for one example, by its layers' kernels.

    The keys and values of a prompt, whose tokens are few, are counted as those of the pixels.
    """
    total = 0.0
    for layer in network.layers:
        if isinstance(layer, keras.Model):
            total += kernel_flops(layer)
        elif layer.trainable_weights and len(layer.output.shape) >= 2:
            # (B, H, W, C), (B, T, C) or (B, C); a prompt has any length.
            positions = math.prod(size or 1 for size in layer.output.shape[1:-1])
            matrices = [v for v in layer.trainable_weights if v.path.endswith("kernel")]
            total += 2 * positions * sum(math.prod(v.shape) for v in matrices)
            if isinstance(layer, TransformerBlock):
                total += 4 * positions**2 * layer.output.shape[-1]
    return total


# ------------------------------------------------------------------ classifiers of images


@dataclass(frozen=True)
class Images:
    """Training step of a classifier of normalized images."""

    model: Literal["mlp", "cnn_48x48"] = "cnn_48x48"
    batch_size: int = 64
    dropout: float = 0.5
    l2: float = 1e-4
    augmented: bool = False
    steps_per_execution: int = 1
    unit = "images"
    images = 1024

    @property
    def shape(self) -> tuple[int, int, int]:
        return (48, 48, 3) if self.model == "cnn_48x48" else (28, 28, 1)

    @property
    def examples(self) -> int:
        return self.batch_size

    def network(self) -> keras.Model:
        dropout = self.dropout if self.model == "cnn_48x48" else 0.0
        return getattr(zoo, self.model)(num_classes=10, dropout=dropout)

    def trainer(self) -> keras.Model:
        preprocessing = ImageAugmentation((MEAN,), (STD,)) if self.augmented else None
        trainer = zoo.Trainer(self.network(), preprocessing)
        trainer.compile(
            Adam(1e-3, l2=self.l2), CrossEntropy(), steps_per_execution=self.steps_per_execution
        )
        return trainer

    def batches(self) -> Batches:
        """Random images, normalized unless the trainer augments them, and their labels."""
        height, width, channels = self.shape
        shape = self.images, height, width, 1 if self.augmented else channels
        x = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
        labels = (np.arange(self.images) % 10).astype(np.int32)
        normalized = x if self.augmented else ((x / 255 - MEAN) / STD).astype(np.float32)
        return Batches((normalized, labels), self.batch_size, seed=0)

    def flops(self) -> float:
        network = self.network()
        first = next(v for v in network.trainable_variables if v.path.endswith("kernel"))
        positions = math.prod(self.shape[:2]) if self.model == "cnn_48x48" else 1
        unneeded = 2 * positions * math.prod(first.shape)
        return self.batch_size * (3 * kernel_flops(network) - unneeded)


# ------------------------------------------------------------------ language models


def token_ids(rows: int, length: int, vocabulary: int) -> np.ndarray:
    """Random token ids, (rows, length) int32."""
    return np.random.default_rng(0).integers(0, vocabulary, (rows, length)).astype(np.int32)


@dataclass(frozen=True)
class Recurrent:
    """Training step of a recurrent language model."""

    cell: Literal["lstm", "gru"] = "lstm"
    vocabulary: int = 5000
    width: int = 256
    length: int = 64
    batch_size: int = 32
    unit = "tokens"

    @property
    def examples(self) -> int:
        return self.batch_size * self.length

    def trainer(self) -> keras.Model:
        network = zoo.rnn_language_model(self.vocabulary, self.cell, self.width, self.width)
        trainer = zoo.Trainer(network)
        trainer.compile(Adam(1e-3), CrossEntropy())
        return trainer

    def batches(self) -> Batches:
        ids = token_ids(16 * self.batch_size, self.length + 1, self.vocabulary)
        return Batches((ids[:, :-1], ids[:, 1:]), self.batch_size, seed=0)

    def flops(self) -> float:
        gates = {"lstm": 4, "gru": 3}[self.cell]
        weights = gates * 2 * self.width**2 + self.width * self.vocabulary
        return 3 * self.examples * 2 * weights


@dataclass(frozen=True)
class GPT:
    """Training step of a GPT-2 with tied embeddings; by default 3.4 million parameters."""

    vocabulary: int = 512
    layers: int = 4
    heads: int = 4
    width: int = 256
    length: int = 256
    batch_size: int = 4
    unit = "tokens"

    @property
    def examples(self) -> int:
        return self.batch_size * self.length

    def network(self) -> keras.Model:
        return zoo.gpt(self.vocabulary, self.length, self.layers, self.heads, self.width)

    def trainer(self) -> keras.Model:
        trainer = zoo.Trainer(self.network())
        trainer.compile(AdamW(1e-3, decay=DECAY), CrossEntropy())
        return trainer

    def batches(self) -> Batches:
        ids = token_ids(16 * self.batch_size, self.length + 1, self.vocabulary)
        return Batches((ids[:, :-1], ids[:, 1:]), self.batch_size, seed=0)

    def forward_flops(self, attended: float) -> float:
        """Operations for one token that attends to so many, itself included."""
        weights = self.layers * 12 * self.width**2 + self.width * self.vocabulary
        return 2 * weights + 4 * self.layers * attended * self.width

    def flops(self) -> float:
        return 3 * self.examples * self.forward_flops((self.length + 1) / 2)


@dataclass(frozen=True)
class Generation:
    """Greedy continuation of prompts by a GPT-2, with cached keys and values."""

    gpt: GPT = GPT()
    batch_size: int = 4
    prompt: int = 16
    new_tokens: int = 240
    temperature: float = 0.0
    unit = "tokens"

    @property
    def examples(self) -> int:
        return self.batch_size * self.new_tokens

    @cached_property
    def prompts(self) -> np.ndarray:
        """Token ids of the prompts, (B, prompt)."""
        return token_ids(self.batch_size, self.prompt, self.gpt.vocabulary)

    def network(self) -> keras.Model:
        return self.gpt.network()

    def generator(self, network: keras.Model) -> Callable[[], np.ndarray]:
        """Function that returns the new tokens, (B, new_tokens)."""
        prompts = list(self.prompts)
        return lambda: np.stack(
            generate(network, prompts, self.new_tokens, temperature=self.temperature)
        )

    def flops(self) -> float:
        total = self.prompt + self.new_tokens - 1  # the last token is not read
        return self.batch_size * total * self.gpt.forward_flops((total + 1) / 2)


# ------------------------------------------------------------------ text-to-image


@dataclass(frozen=True)
class Diffusion:
    """Training step of a text-to-image model: noise, a squared error and averaged weights."""

    channels: tuple[int, ...] = (24, 48, 96)
    size: int = 28
    batch_size: int = 64
    timesteps: int = 1000
    unit = "images"
    images = 1024

    @property
    def examples(self) -> int:
        return self.batch_size

    @cached_property
    def prompts(self) -> np.ndarray:
        """Token ids of the prompts of each class, (10, prompts, L)."""
        return np.stack([self._tokenizer.encode(of_class) for of_class in prompts_by_class()])

    @property
    def _tokenizer(self) -> WordTokenizer:
        return WordTokenizer([prompt for prompts in prompts_by_class() for prompt in prompts])

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of `zoo.text_to_image` and of the native models."""
        return {
            "vocabulary_size": len(self._tokenizer), "max_length": self._tokenizer.max_length,
            "channels": self.channels, "input_shape": (self.size, self.size, 1),
            "num_steps": self.timesteps,
        }  # fmt: skip

    def network(self) -> keras.Model:
        return zoo.text_to_image(**self.arguments)

    def trainer(self) -> keras.Model:
        diffusion = GaussianDiffusion(cosine(self.timesteps))
        trainer = DiffusionTrainer(self.network(), diffusion, prompts=self.prompts)
        trainer.compile(Adam(1e-3, global_clipnorm=1.0, use_ema=True, ema_momentum=MOMENTUM))
        return trainer

    def batches(self) -> Batches:
        shape = self.images, self.size, self.size, 1
        images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
        labels = (np.arange(self.images) % 10).astype(np.int32)
        return Batches({"image": images, "label": labels}, self.batch_size, seed=0)

    def flops(self) -> float:
        return self.batch_size * 3 * kernel_flops(self.network())


@dataclass(frozen=True)
class Sampling:
    """Images sampled by DDIM with classifier-free guidance."""

    model: Diffusion = Diffusion()
    batch_size: int = 16
    steps: int = 50
    guidance_scale: float = 2.0
    unit = "images"

    @property
    def examples(self) -> int:
        return self.batch_size

    @cached_property
    def prompts(self) -> np.ndarray:
        """Token ids of the prompts, the digits in turn: (B, L)."""
        prompts = self.model.prompts
        return prompts[np.arange(self.batch_size) % len(prompts), 0]

    def network(self) -> keras.Model:
        return self.model.network()

    def sampler(self, network: keras.Model) -> Callable[[], np.ndarray]:
        """Function that samples images, (B, H, W, 1), with the noise of seed 0."""
        sampler = Sampler(network, GaussianDiffusion(cosine(self.model.timesteps)))
        options = {"guidance_scale": self.guidance_scale, "steps": self.steps}
        return lambda: sampler.sample(self.batch_size, self.prompts, **options)

    def flops(self) -> float:
        return self.batch_size * self.steps * 2 * kernel_flops(self.network())


Workload = Images | Recurrent | GPT | Generation | Diffusion | Sampling
