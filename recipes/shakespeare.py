"""Trains a small GPT on Shakespeare's works, character by character.

    KERAS_BACKEND=jax python recipes/shakespeare.py --quick

The full setting is nanoGPT's for a CPU (4 layers, 4 heads, width 128, context 64, 2,000 steps of 12
windows), some minutes on two cores. Four plays are held out, or, with `--split first_90`, the last
tenth of the text, as nanoGPT does. The same `--run-dir` resumes a run; then
`zoo generate "ROMEO" --run-dir DIR` continues a text.

Source: the document's section "LLMs"; Radford et al., 2019; the setting is nanoGPT's.
"""

import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import keras

from zoo import Trainer, backends, cli, gpt
from zoo.datasets import shakespeare
from zoo.datasets.token_windows import TokenWindows
from zoo.datasets.tokenizer import Tokenizer
from zoo.evaluation.language_model import bits_per_character
from zoo.evaluation.plots import plot_curves
from zoo.generation.completion import TextGenerator
from zoo.training import AdamW, Batches, CrossEntropy, sharded_model
from zoo.training.config import TrainingConfig, open_run, set_defaults
from zoo.training.optimizers import learning_rate_schedule
from zoo.training.run_directory import RunDirectory
from zoo.validation import Count, Layers, NonNegative, Positive, Rate, Size, Vocabulary, validated


@validated
@dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    """Train a GPT on Shakespeare's works, and let it continue a text."""

    tokens: Literal["characters", "subwords"] = "characters"
    """Kind of token that the model reads."""
    vocabulary_size: Vocabulary = 2000
    """Number of subwords, with --tokens subwords."""
    split: Literal["works", "first_90"] = "works"
    """Training text: all works but those held out, or the first 90 % of the text."""
    num_layers: Layers = 4
    """Number of transformer blocks."""
    num_heads: Size = 4
    """Number of attention heads in each block."""
    hidden_dim: Size = 128
    """Width of a token's vector."""
    length: Size = 64
    """Number of tokens that the model reads at once."""
    dropout: Rate = 0.0
    """Fraction dropped of the embeddings and of the output of each sublayer."""
    modern: bool = False
    """RMSNorm, rotary positions and SwiGLU instead of GPT-2's block."""
    epochs: Count | None = None
    """Epochs of --steps-per-epoch steps; by default 8, with --quick 3."""
    steps_per_epoch: Count | None = None
    """Training steps before each validation; by default 250, with --quick 100."""
    batch_size: Size = 12
    """Windows in a training step, from random places of the text."""
    learning_rate: Positive = 1e-3
    """Largest step size of AdamW; it rises for 100 steps and falls to a tenth."""
    weight_decay: NonNegative = 0.1
    """Share of the learning rate by which matrices shrink at each step."""
    shard_model: bool = False
    """Divide the weights among the --devices, which hold them all otherwise; on JAX and PyTorch."""
    prompt: str = "ROMEO"
    """Beginning of the text that is written at the end."""
    temperature: NonNegative = 0.8
    """Temperature of that text: 1 samples from the model's distribution, 0 decodes greedily."""
    quick: bool = False
    """A short run: 3 epochs of 100 steps, where not set otherwise."""

    def __post_init__(self) -> None:
        quick = {"epochs": 3, "steps_per_epoch": 100}
        set_defaults(self, **(quick if self.quick else {"epochs": 8, "steps_per_epoch": 250}))
        divides = self.num_heads % self.devices == self.hidden_dim % self.devices == 0
        if self.shard_model and backends.name == "jax" and not divides:
            raise ValueError(
                "`devices` must divide `num_heads` and `hidden_dim` with `shard_model` on JAX. "
                f"Received: devices={self.devices}, num_heads={self.num_heads}, "
                f"hidden_dim={self.hidden_dim}"
            )

    def distributed(self) -> AbstractContextManager[Any]:
        if not self.shard_model:
            return super().distributed()
        return sharded_model(
            self.devices, self.num_nodes, self.node_rank, self.coordinator, self.max_restarts
        )


MODERN = {"norm": "rms_norm", "positions": "rotary", "activation": "swiglu", "use_bias": False}


def main(config: Config) -> dict[str, Any]:
    """Runs the recipe, or resumes it, writes a text, and returns the metrics."""
    console = cli.recipe_console(config.quiet)
    size = None if config.tokens == "characters" else config.vocabulary_size
    with open_run(
        "shakespeare", config, "prompt", "temperature", "shard_model", extendable="epochs"
    ) as run:
        config.prepare()
        path = run.input_path("vocabulary.json")
        tokenizer = shakespeare.make_tokenizer(path, size, config.split)
        generator = TextGenerator(tokenizer, config.prompt, config.seed, config.temperature)
        network = gpt(
            len(tokenizer), config.length, config.num_layers, config.num_heads, config.hidden_dim,
            dropout=config.dropout, seed=config.seed, dtype=config.dtype_policy,
            **(MODERN if config.modern else {}),
        )  # fmt: skip
        if run.metrics:
            score = run.result("test_loss")
            console.print(f"The run in {run.path} is finished: test loss {score:.4f} nats a token")
            run.load_weights(network)
        metrics = run.metrics or train(config, run, tokenizer, network)
    generator.print_text(network, console)
    return metrics


def train(
    config: Config, run: RunDirectory, tokenizer: Tokenizer, network: keras.Model
) -> dict[str, Any]:
    """Trains the network, or resumes its training; writes and returns the metrics."""
    console = cli.recipe_console(config.quiet)
    ids = shakespeare.encode_split(tokenizer, scheme=config.split)
    windows = TokenWindows(ids["train"], config.length, stride=1)
    batch_size = config.batch_size * config.gradient_accumulation
    batches = Batches(windows, batch_size, config.seed, config.steps_per_epoch)
    held_out = {
        part: Batches(TokenWindows(ids[part], config.length)) for part in ("validation", "test")
    }
    steps = config.epochs * config.steps_per_epoch
    rate = learning_rate_schedule("warmup_cosine", config.learning_rate, steps)

    trainer = Trainer(network)
    optimizer = AdamW(rate, config.weight_decay, beta_2=0.99, global_clipnorm=1.0)
    trainer.compile(optimizer, CrossEntropy())
    run.write_input("vocabulary.json", tokenizer.to_json())
    console.print(
        f"{network.count_params():,} parameters, {len(ids['train']):,} tokens of text, "
        f"{backends.name}; Ctrl-C stops, `--run-dir {run.path}` goes on"
    )
    checkpoint = run.checkpoint(config.checkpoint_steps, console)
    history = trainer.fit(
        batches,
        epochs=config.epochs,
        validation_data=held_out["validation"],
        callbacks=config.callbacks(),
        verbose=config.verbose,
        checkpoint=checkpoint,
        gradient_accumulation=config.gradient_accumulation,
    )
    validation_loss = trainer.evaluate(held_out["validation"], verbose=0)
    test_loss = trainer.evaluate(held_out["test"], verbose=0)

    bits = bits_per_character(test_loss, ids["test"], tokenizer)
    run.save_model(network)
    curves = plot_curves(history, ["loss"], "training", "validation", ["nats a token"])
    run.save_plot("loss.png", curves)
    console.print(f"Test loss {test_loss:.4f} nats a token, {bits:.4f} bits a character")
    return run.finish(
        "shakespeare", network, checkpoint.state, console, tokens=config.tokens, seed=config.seed,
        train_examples=steps * batch_size, epochs=config.epochs, steps=steps,
        test_loss=test_loss, validation_loss=validation_loss, test_bits_per_character=bits,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(cli.run(lambda: cli.run_recipe(main, Config)))
