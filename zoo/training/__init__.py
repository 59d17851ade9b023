"""Training: the trainer, its batches, losses, optimizers, checkpoints and run directories."""

from zoo.training.batches import Batches as Batches
from zoo.training.callbacks import Diverged as Diverged
from zoo.training.callbacks import Interrupted as Interrupted
from zoo.training.callbacks import StepCheckpoint as StepCheckpoint
from zoo.training.launcher import distributed as distributed
from zoo.training.losses import CrossEntropy as CrossEntropy
from zoo.training.optimizers import Adam as Adam
from zoo.training.optimizers import AdamW as AdamW
from zoo.training.saving import load_model as load_model
from zoo.training.sharding import sharded_model as sharded_model
from zoo.training.trainer import Trainer as Trainer
