"""Trains a recurrent network to predict the next word in Shakespeare's works.

    KERAS_BACKEND=torch python recipes/next_word.py --cell gru --quick --prompt "To be, or not to"

`--quick` takes a minute or two on two cores and reaches a test perplexity of about 102, the full
setting 53 (LSTM) or 61 (GRU); single tokens' frequencies give 543, bigrams 98, trigrams 73.
Four plays are held out, two to watch the training by and two to test. Run it again with the same
`--run-dir` to go on where it stopped or, once it is finished, to ask after another `--prompt`.

Source: the document's section "Réseaux de Neurones Récurrents"; dropout as in Zaremba et al.,
"Recurrent Neural Network Regularization", 2014.
"""

import math
import sys
from dataclasses import dataclass
from typing import Any, Literal

import keras
import tyro

from zoo import backends, cli, rnn_language_model
from zoo.datasets import shakespeare, token_windows
from zoo.datasets.tokenizer import Tokenizer
from zoo.evaluation import language_model
from zoo.generation import completion
from zoo.training import losses, trainer
from zoo.training.optimizers import Adam, learning_rate_schedule
from zoo.training.run_directory import RunDirectory, TrainingConfig, open_run, set_defaults
from zoo.validation import check_sizes


@dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    """Train a recurrent language model on Shakespeare's works, and ask it for the next word."""

    cell: Literal["simple_rnn", "lstm", "gru"] = "lstm"
    """The cell of the recurrent layers."""
    prompt: str = "To be, or not to"
    """What stands before the next word; a finished run answers another prompt at once."""
    temperature: float = 0.8
    """Of the text written at the end: 1 draws as the model predicts, 0 takes the likeliest."""
    vocabulary_size: int = 5000
    """Words and parts of words in the vocabulary, which is trained on the training works."""
    units: int = 256
    """Width of the state and of a token's vector."""
    num_layers: int = 1
    """Recurrent layers."""
    dropout: float = 0.2
    """Fraction dropped before each layer and before the output."""
    length: int = 64
    """Tokens of a training example."""
    epochs: int | None = None
    """Passes over the training works; by default 4, with --quick 1."""
    train_examples: int | None = None
    """Training examples, the first so many; by default all, with --quick 8,000."""
    batch_size: int = 32
    """Examples of a training step."""
    learning_rate: float = 1e-2
    """Adam's step size, at its largest."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """The learning rate over the run; cosine falls to 0 at the end."""
    quick: bool = False
    """A short run: 1 epoch over 8,000 examples, where not set otherwise."""

    def __post_init__(self) -> None:
        chosen = {"epochs": 1, "train_examples": 8000} if self.quick else {"epochs": 4}
        set_defaults(self, **chosen)
        check_sizes(epochs=self.epochs, batch_size=self.batch_size)
        check_sizes(length=self.length, units=self.units, checkpoint_steps=self.checkpoint_steps)


def main(config: Config) -> dict[str, Any]:
    """Runs the recipe, or goes on with it, answers the prompt, and returns the metrics."""
    console = cli.console()
    run = open_run("next_word", config, "prompt", "temperature")
    if config.deterministic:
        backends.backend.make_deterministic()
    vocabulary = shakespeare.make_tokenizer(run.path / "vocabulary.json", config.vocabulary_size)
    answer = completion.NextWordDemo(vocabulary, config.prompt, config.seed, config.temperature)
    model = rnn_language_model(
        len(vocabulary), config.cell, config.units, config.units, config.num_layers,
        config.dropout, seed=config.seed, dtype=config.dtype_policy,
    )  # fmt: skip
    if run.metrics:
        score = run.metrics["test_perplexity"]
        console.print(f"The run in {run.path} is finished: test perplexity {score:.1f}")
        model.load_weights(run.path / "model.weights.h5")
    metrics = run.metrics or train(config, run, vocabulary, model)
    answer.write(model, console)
    return metrics


def train(
    config: Config, run: RunDirectory, vocabulary: Tokenizer, model: keras.Model
) -> dict[str, Any]:
    """Trains the model, or goes on with it; writes and returns the metrics."""
    console = cli.console()
    ids = shakespeare.encode_split(vocabulary, run.path)
    examples = token_windows.TokenWindows(ids["train"], config.length, config.train_examples)
    steps = config.epochs * math.ceil(len(examples) / config.batch_size)
    rate = learning_rate_schedule(config.schedule, config.learning_rate, steps)
    optimizer = Adam(rate, global_clipnorm=1.0)  # a recurrent network's gradient may explode
    run.write_config()
    run.write("vocabulary.json", vocabulary.to_json())
    console.print(
        f"{config.cell} on {len(ids['train'])} tokens with {backends.name}; Ctrl-C stops, "
        f"`--run-dir {run.path}` goes on"
    )
    mean_loss = language_model.document_loss(model)
    state = trainer.fit(
        model, optimizer, losses.language_objective(model), examples, run,
        epochs=config.epochs, batch_size=config.batch_size, seed=config.seed,
        evaluate=lambda: language_model.scores("validation", mean_loss(ids["validation"])),
        checkpoint_steps=config.checkpoint_steps, console=console,
    )  # fmt: skip
    scores = language_model.write_report(
        run, state.history, ids, mean_loss, len(vocabulary), console
    )
    model.save_weights(run.path / "model.weights.h5")
    run.write("model.json", model.to_json(indent=2).encode())
    metrics = trainer.metrics(
        "next_word", model, state, cell=config.cell, seed=config.seed,
        train_examples=len(examples), epochs=config.epochs, **scores,
    )  # fmt: skip
    run.write_metrics(metrics)
    console.print(f"Results are in {run.path}\n")
    return metrics


if __name__ == "__main__":
    sys.exit(cli.run(lambda: main(tyro.cli(Config))))
