"""Trains a recurrent network to predict the next word in Shakespeare's works.

    KERAS_BACKEND=torch python recipes/next_word.py --cell gru --quick --prompt "To be, or not to"

`--quick` takes a minute or two on two cores and reaches a test perplexity of about 102, the full
setting 53 (LSTM) or 61 (GRU); single tokens' frequencies give 543, bigrams 98, trigrams 73.
Four plays are held out, two for validation and two for the test. The same `--run-dir` resumes a
run; a finished run answers another `--prompt` at once.

Source: the document's section "Réseaux de Neurones Récurrents"; dropout as in Zaremba et al.,
"Recurrent Neural Network Regularization", 2014.
"""

import sys
from dataclasses import dataclass
from typing import Any, Literal

import keras

from zoo import Trainer, backends, cli, rnn_language_model
from zoo.datasets import shakespeare
from zoo.datasets.token_windows import TokenWindows
from zoo.datasets.tokenizer import Tokenizer
from zoo.evaluation.language_model import DocumentLoss, DocumentScorer, write_report
from zoo.generation.completion import NextWordDemo
from zoo.training import Adam, Batches, CrossEntropy
from zoo.training.config import TrainingConfig, open_run, set_defaults
from zoo.training.optimizers import learning_rate_schedule
from zoo.training.run_directory import RunDirectory
from zoo.validation import Count, Layers, NonNegative, Positive, Rate, Size, Vocabulary, validated

QUICK_EXAMPLES = 8000  # or, of a smaller data set, all


@validated
@dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    """Train a recurrent language model on Shakespeare's works, and ask it for the next word."""

    cell: Literal["simple_rnn", "lstm", "gru"] = "lstm"
    """Cell of the recurrent layers."""
    prompt: str = "To be, or not to"
    """Text before the next word; a finished run answers another prompt at once."""
    temperature: NonNegative = 0.8
    """Temperature of the text written at the end: 1 samples from the model's distribution, 0
    decodes greedily."""
    vocabulary_size: Vocabulary = 5000
    """Number of words and parts of words in the vocabulary, from the training works."""
    units: Size = 256
    """Width of the state and of a token's vector."""
    num_layers: Layers = 1
    """Number of recurrent layers."""
    dropout: Rate = 0.2
    """Fraction dropped before each layer and before the output."""
    length: Size = 64
    """Number of tokens in a training example."""
    epochs: Count | None = None
    """Passes over the training works; by default 4, with --quick 1."""
    train_examples: Count | None = None
    """Number of training examples, from the first on; by default all, with --quick 8,000
    or, if the text has fewer, all."""
    batch_size: Size = 32
    """Number of examples in a training step."""
    learning_rate: Positive = 1e-2
    """Largest step size of Adam."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Learning rate over the run; cosine falls to 0 at the end."""
    quick: bool = False
    """A short run: 1 epoch over 8,000 examples, where not set otherwise."""

    def __post_init__(self) -> None:
        quick = {"epochs": 1, "train_examples": QUICK_EXAMPLES}
        set_defaults(self, **(quick if self.quick else {"epochs": 4}))


def main(config: Config) -> dict[str, Any]:
    """Runs the recipe, or resumes it, answers the prompt, and returns the metrics."""
    console = cli.recipe_console(config.quiet)
    with open_run("next_word", config, "prompt", "temperature", extendable="epochs") as run:
        config.prepare()
        path = run.input_path("vocabulary.json")
        tokenizer = shakespeare.make_tokenizer(path, config.vocabulary_size)
        demo = NextWordDemo(tokenizer, config.prompt, config.seed, config.temperature)
        network = rnn_language_model(
            len(tokenizer), config.cell, config.units, config.units, config.num_layers,
            config.dropout, seed=config.seed, dtype=config.dtype_policy,
        )  # fmt: skip
        if run.metrics:
            score = run.result("test_perplexity")
            console.print(f"The run in {run.path} is finished: test perplexity {score:.1f}")
            run.load_weights(network)
        metrics = run.metrics or train(config, run, tokenizer, network)
    demo.print_text(network, console)
    return metrics


def train(
    config: Config, run: RunDirectory, tokenizer: Tokenizer, network: keras.Model
) -> dict[str, Any]:
    """Trains the network, or resumes its training; writes and returns the metrics."""
    console = cli.recipe_console(config.quiet)
    ids = shakespeare.encode_split(tokenizer)
    available = len(TokenWindows(ids["train"], config.length))
    fewer = config.quick and config.train_examples == QUICK_EXAMPLES
    if (config.train_examples or 0) > available and not fewer:
        raise ValueError(
            f"`train_examples` must be at most {available}, the windows of {config.length} tokens "
            f"in the text. Received: train_examples={config.train_examples}"
        )
    count = min(config.train_examples or available, available)
    windows = TokenWindows(ids["train"], config.length, count=count)
    batch_size = config.batch_size * config.gradient_accumulation
    batches = Batches(windows, batch_size, seed=config.seed)
    steps = config.epochs * batches.steps_per_epoch
    rate = learning_rate_schedule(config.schedule, config.learning_rate, steps)

    trainer = Trainer(network)
    optimizer = Adam(rate, global_clipnorm=1.0)  # a recurrent network's gradient may explode
    trainer.compile(optimizer, CrossEntropy())
    run.write_input("vocabulary.json", tokenizer.to_json())
    console.print(
        f"{config.cell} on {len(ids['train'])} tokens with {backends.name}; Ctrl-C stops, "
        f"`--run-dir {run.path}` goes on"
    )
    checkpoint = run.checkpoint(config.checkpoint_steps, console)
    history = trainer.fit(
        batches,
        epochs=config.epochs,
        callbacks=[DocumentLoss(network, ids["validation"]), *config.callbacks()],
        verbose=config.verbose,
        checkpoint=checkpoint,
        gradient_accumulation=config.gradient_accumulation,
    )
    test_loss = DocumentScorer(network).evaluate(ids["test"])

    scores = write_report(run, history, ids, test_loss, len(tokenizer), console)
    run.save_model(network)
    return run.finish(
        "next_word", network, checkpoint.state, console, cell=config.cell, seed=config.seed,
        train_examples=len(windows), epochs=config.epochs, **scores,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(cli.run(lambda: cli.run_recipe(main, Config)))
