"""Trains a small GPT on Shakespeare's works, character by character.

    KERAS_BACKEND=jax python recipes/shakespeare.py --quick

The full setting is nanoGPT's for a CPU (4 layers, 4 heads, width 128, context 64, 2,000 steps of 12
pieces), some minutes on two cores. Four plays are held out, or, with `--split first_90`, the last
tenth of the text, as nanoGPT does. The same `--run-dir` goes on where it stopped; then
`python -m zoo generate --run-dir DIR --prompt "ROMEO"` writes on.

Source: the document's section "LLMs"; Radford et al., 2019; the setting is nanoGPT's.
"""

import sys
from dataclasses import dataclass
from typing import Any, Literal

import keras
import tyro

from zoo import backends, cli, gpt
from zoo.datasets import shakespeare, token_windows
from zoo.datasets.tokenizer import Tokenizer
from zoo.evaluation import language_model, plots
from zoo.generation import completion
from zoo.training import losses, trainer
from zoo.training.optimizers import AdamW, learning_rate_schedule
from zoo.training.run_directory import RunDirectory, TrainingConfig, open_run, set_defaults
from zoo.validation import check_sizes


@dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    """Train a GPT on Shakespeare's works, and let it write."""

    tokens: Literal["characters", "subwords"] = "characters"
    """What the model reads."""
    vocabulary_size: int = 2000
    """Of subwords."""
    split: Literal["works", "first_90"] = "works"
    """What it is trained on: all works but those held out, or the first 90 % of the text."""
    num_layers: int = 4
    """Blocks."""
    num_heads: int = 4
    """Heads of each block's attention."""
    hidden_dim: int = 128
    """Width of a token's vector."""
    length: int = 64
    """Tokens that the model sees at once."""
    dropout: float = 0.0
    """Fraction dropped of the embeddings and of what each part of a block adds."""
    modern: bool = False
    """RMSNorm, rotary positions and SwiGLU in place of GPT-2's block."""
    steps: int | None = None
    """Training steps; by default 2,000, with --quick 300."""
    batch_size: int = 12
    """Pieces of a training step, from places drawn at random."""
    learning_rate: float = 1e-3
    """AdamW's step size at its largest; it rises for 100 steps and falls to a tenth."""
    weight_decay: float = 0.1
    """Share of the learning rate by which matrices shrink at each step."""
    prompt: str = "ROMEO"
    """What the text written at the end begins with."""
    temperature: float = 0.8
    """Of it: 1 draws as the model predicts, 0 takes the likeliest."""
    quick: bool = False
    """A short run: 300 steps, where not set otherwise."""

    def __post_init__(self) -> None:
        set_defaults(self, steps=300 if self.quick else 2000)
        check_sizes(steps=self.steps, batch_size=self.batch_size, length=self.length)
        check_sizes(checkpoint_steps=self.checkpoint_steps)


MODERN = {"norm": "rms_norm", "positions": "rotary", "activation": "swiglu", "use_bias": False}


def main(config: Config) -> dict[str, Any]:
    """Runs the recipe, or goes on with it, writes a text, and returns the metrics."""
    console = cli.console()
    run = open_run("shakespeare", config, "prompt", "temperature")
    if config.deterministic:
        backends.backend.make_deterministic()
    size = None if config.tokens == "characters" else config.vocabulary_size
    vocabulary = shakespeare.make_tokenizer(run.path / "vocabulary.json", size, config.split)
    writer = completion.TextGenerator(vocabulary, config.prompt, config.seed, config.temperature)
    model = gpt(
        len(vocabulary), config.length, config.num_layers, config.num_heads, config.hidden_dim,
        dropout=config.dropout, seed=config.seed, dtype=config.dtype_policy,
        **(MODERN if config.modern else {}),
    )  # fmt: skip
    if run.metrics:
        score = run.metrics["test_loss"]
        console.print(f"The run in {run.path} is finished: test loss {score:.4f} nats a token")
        model.load_weights(run.path / "model.weights.h5")
    metrics = run.metrics or train(config, run, vocabulary, model)
    writer.write(model, console)
    return metrics


def train(
    config: Config, run: RunDirectory, vocabulary: Tokenizer, model: keras.Model
) -> dict[str, Any]:
    """Trains the model, or goes on with it; writes and returns the metrics."""
    console = cli.console()
    ids = shakespeare.encode_split(vocabulary, run.path, config.split)
    count = config.steps * config.batch_size
    examples = token_windows.RandomTokenWindows(ids["train"], config.length, count, config.seed)
    rate = learning_rate_schedule("warmup_cosine", config.learning_rate, config.steps)
    optimizer = AdamW(rate, config.weight_decay, beta_2=0.99, global_clipnorm=1.0)
    run.write_config()
    run.write("vocabulary.json", vocabulary.to_json())
    console.print(
        f"{model.count_params():,} parameters, {len(ids['train']):,} tokens of text, "
        f"{backends.name}; Ctrl-C stops, `--run-dir {run.path}` goes on"
    )
    mean_loss = language_model.window_loss(model, config.length)
    state = trainer.fit(
        model, optimizer, losses.language_objective(model), examples, run,
        epochs=1, batch_size=config.batch_size, seed=config.seed,
        evaluate=lambda: {"validation_loss": mean_loss(ids["validation"])},
        checkpoint_steps=config.checkpoint_steps, console=console,
    )  # fmt: skip
    test_loss = mean_loss(ids["test"])
    bits = language_model.bits_per_character(test_loss, ids["test"], vocabulary)
    model.save_weights(run.path / "model.weights.h5")
    run.write("model.json", model.to_json(indent=2).encode())
    plots.plot_losses(state.losses, state.history[-1]).savefig(run.path / "loss.png", dpi=120)
    metrics = trainer.metrics(
        "shakespeare", model, state, tokens=config.tokens, seed=config.seed,
        train_examples=count, epochs=1, test_loss=test_loss,
        validation_loss=state.history[-1]["validation_loss"],
        test_bits_per_character=bits,
    )  # fmt: skip
    run.write_metrics(metrics)
    console.print(
        f"Test loss {test_loss:.4f} nats a token, {bits:.4f} bits a character. "
        f"Results are in {run.path}\n"
    )
    return metrics


if __name__ == "__main__":
    sys.exit(cli.run(lambda: main(tyro.cli(Config))))
