"""Configuration of the diffusion recipes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from zoo import datasets, registry
from zoo.datasets.images import ImageDataset
from zoo.diffusion.losses import ema_momentum
from zoo.diffusion.pipeline import DiffusionSpec
from zoo.training.config import TrainingConfig, set_defaults
from zoo.training.optimizers import Adam, learning_rate_schedule
from zoo.validation import (
    Count,
    Layers,
    Positive,
    Probability,
    Rate,
    Size,
    each,
    validated,
    whole,
)

NUM_STEPS = 1000  # T
QUICK_EXAMPLES = 6400  # or, of a smaller data set, all


@validated
@dataclass(frozen=True, kw_only=True)
class DiffusionConfig(TrainingConfig):
    """Flags of recipes/diffusion.py and recipes/text_to_image.py."""

    dataset: str = "mnist"
    """mnist, or a name of TensorFlow Datasets such as fashion_mnist."""
    data_dir: Path | None = None
    """Directory of TensorFlow Datasets; by default its own."""
    image_size: Size | None = None
    """Height and width to resize images to; by default as they are."""
    classifier: Path | None = None
    """Finished run of `zoo train mnist` for the sample metrics; by default one is trained."""
    classifier_model: str | None = None
    """Network of the classifier, if it is trained; by default cnn_48x48, with --quick mlp."""
    channels: Annotated[tuple[int, ...], each(whole(), 1)] | None = None
    """Channels of each level of the U-Net, which halves the image; by default 32 64 128, with
    --quick 24 48 96; with --latent, which halves the image already, 32 64."""
    num_blocks: Layers = 1
    """Residual blocks of each level, on the way down and on the way up."""
    dropout: Rate = 0.0
    """Fraction dropped within a residual block."""
    latent: bool = False
    """Diffusion in the latent space of an autoencoder, which is trained first."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """Noise schedule."""
    zero_terminal_snr: bool = False
    """Rescale the schedule, so that the last step is pure noise."""
    prediction: Literal["v", "noise", "x0"] = "v"
    """Quantity that the network predicts."""
    min_snr_gamma: Positive | None = None
    """Largest signal-to-noise ratio that counts fully in the loss; 5 is usual."""
    epochs: Count | None = None
    """Passes over the training images; by default 3, with --quick 4."""
    train_examples: Count | None = None
    """Number of training images, from the first on; by default all, with --quick 6,400 or,
    in a smaller data set, all."""
    batch_size: Size | None = None
    """Number of images in a training step; by default 64, with --quick 32."""
    learning_rate: Positive = 2e-3
    """Largest step size of Adam; it rises for 100 steps and falls to a tenth."""
    steps: Annotated[int, whole(1, NUM_STEPS)] = 50
    """Number of sampling steps."""
    eta: Probability = 0.0
    """0 samples with DDIM, 1 with DDPM's steps."""
    samples: Size | None = None
    """Number of images sampled for the metrics; by default 1,000, with --quick 200."""
    quick: bool = False
    """A short run with a smaller network, where not set otherwise."""

    def __post_init__(self) -> None:
        if self.latent:
            set_defaults(self, channels=(32, 64))
        quick = {"channels": (24, 48, 96), "epochs": 4, "train_examples": QUICK_EXAMPLES,
                 "batch_size": 32, "samples": 200, "classifier_model": "mlp"}  # fmt: skip
        full = {"channels": (32, 64, 128), "epochs": 3, "batch_size": 64, "samples": 1000,
                "classifier_model": "cnn_48x48"}  # fmt: skip
        set_defaults(self, **(quick if self.quick else full))
        registry.get_classifier(str(self.classifier_model))  # raises ValueError if it is unknown
        self.spec.make_diffusion()  # raises ValueError for what does not go together

    @property
    def spec(self) -> DiffusionSpec:
        """Schedule and prediction."""
        return DiffusionSpec(self.schedule, NUM_STEPS, self.zero_terminal_snr, self.prediction)

    @property
    def network(self) -> dict[str, Any]:
        """Arguments of the builders."""
        return {
            "channels": self.channels, "num_blocks": self.num_blocks, "num_steps": NUM_STEPS,
            "dropout": self.dropout, "seed": self.seed, "dtype": self.dtype_policy,
        }  # fmt: skip

    def load_data(self) -> ImageDataset:
        """Loads the images."""
        fewer = self.quick and self.train_examples == QUICK_EXAMPLES
        return datasets.load(
            self.dataset, self.image_size, self.train_examples, data_dir=self.data_dir,
            allow_fewer=fewer, verbose=not self.quiet,
        )  # fmt: skip

    def check(self, data: ImageDataset) -> None:
        """Raises ValueError unless the metrics can be computed for each class of the data."""
        if (self.samples or 0) < 2 * data.num_classes:
            raise ValueError(
                f"`samples` must be at least {2 * data.num_classes}, two images of each of "
                f"{data.num_classes} classes. Received: samples={self.samples}"
            )

    def optimizer(self, steps: int) -> Adam:
        """Adam with clipped gradients and averaged weights, for a training of `steps` steps."""
        rate = learning_rate_schedule("warmup_cosine", self.learning_rate, steps)
        return Adam(rate, global_clipnorm=1.0, use_ema=True, ema_momentum=ema_momentum(steps))
