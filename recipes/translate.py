"""Trains a transformer to translate English verses into Spanish.

    KERAS_BACKEND=jax python recipes/translate.py --quick

Seven books are held out; both languages share a vocabulary of subwords. The full setting takes some
50 minutes on two cores and comes to a BLEU of 18.6 and a chrF of 39.2. The same `--run-dir` goes on
where it stopped. Then `python -m zoo generate --run-dir DIR --prompt "In the beginning"`
translates.

Source: the document's section "Architecture de Transformateur"; Vaswani et al., 2017.
"""

import sys
from dataclasses import dataclass
from typing import Any

import keras
import tyro

from zoo import backends, cli, transformer
from zoo.datasets import parallel_text
from zoo.datasets.parallel_text import LengthBuckets, Pair
from zoo.datasets.tokenizer import Tokenizer
from zoo.evaluation import translation
from zoo.training import losses, trainer
from zoo.training.optimizers import Adam, learning_rate_schedule
from zoo.training.run_directory import RunDirectory, TrainingConfig, open_run, set_defaults
from zoo.validation import check_sizes


@dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    """Train a transformer on English and Spanish verses, and let it translate."""

    vocabulary_size: int = 4000
    """Subwords, of both languages together."""
    num_layers: int = 3
    """Blocks of the encoder, and as many of the decoder."""
    num_heads: int = 4
    """Heads of each attention."""
    hidden_dim: int = 192
    """Width of a token's vector."""
    intermediate_dim: int = 768
    """Width within a block's feed-forward network."""
    dropout: float = 0.1
    """Fraction dropped of the embeddings and of what each part of a block adds."""
    epochs: int | None = None
    """Passes over the training pairs; by default 7, with --quick 4."""
    longest: int | None = None
    """Tokens of the longest sentence that is trained on; by default 64, with --quick 24."""
    batch_tokens: int = 1024
    """Tokens of a training step on either side; sentences of like length are read together."""
    learning_rate: float = 1e-3
    """Adam's step size at its largest; it rises for up to 400 steps and falls to a tenth."""
    label_smoothing: float = 0.1
    """Share of each label that is spread over the vocabulary."""
    num_beams: int = 4
    """Translations that are followed at once."""
    test_pairs: int | None = None
    """Translate only that many of the test pairs; by default all, with --quick 64."""
    quick: bool = False
    """A short run: 4 epochs over short sentences, where not set otherwise."""

    def __post_init__(self) -> None:
        quick = {"epochs": 4, "longest": 24, "test_pairs": 64}
        set_defaults(self, **(quick if self.quick else {"epochs": 7, "longest": 64}))
        check_sizes(
            epochs=self.epochs, longest=self.longest, batch_tokens=self.batch_tokens,
            num_beams=self.num_beams, checkpoint_steps=self.checkpoint_steps,
            test_pairs=1 if self.test_pairs is None else self.test_pairs,
        )  # fmt: skip


MAX_LENGTH = 256  # tokens of the longest sentence that can be translated


def main(config: Config) -> dict[str, Any]:
    """Runs the recipe, or goes on with it, and returns the metrics."""
    console = cli.console()
    run = open_run("translate", config)
    if config.deterministic:
        backends.backend.make_deterministic()
    if found := run.metrics:
        scores = f"BLEU {found['bleu']:.1f}, chrF {found['chrf']:.1f}"
        console.print(f"The run in {run.path} is finished: {scores}")
        return found
    parts = {part: parallel_text.split(part) for part in ("train", "validation", "test")}
    vocabulary = parallel_text.make_tokenizer(run.path / "vocabulary.json", config.vocabulary_size)
    model = transformer(
        len(vocabulary), len(vocabulary), MAX_LENGTH, config.num_layers, config.num_heads,
        config.hidden_dim, config.intermediate_dim, norm_first=True, share_embeddings=True,
        dropout=config.dropout, seed=config.seed, dtype=config.dtype_policy,
    )  # fmt: skip
    return train(config, run, parts, vocabulary, model)


def train(
    config: Config,
    run: RunDirectory,
    parts: dict[str, list[Pair]],
    vocabulary: Tokenizer,
    model: keras.Model,
) -> dict[str, Any]:
    """Trains the model, or goes on with it; writes and returns the metrics."""
    console = cli.console()
    ids = {part: parallel_text.encoded(chosen, vocabulary) for part, chosen in parts.items()}
    batches = LengthBuckets(*ids["train"], config.batch_tokens, config.longest, config.seed)
    held_out = {
        part: LengthBuckets(*ids[part], config.batch_tokens, MAX_LENGTH)
        for part in ("validation", "test")
    }
    steps = config.epochs * len(batches)
    rate = learning_rate_schedule("warmup_cosine", config.learning_rate, steps, warmup_steps=400)
    optimizer = Adam(rate, beta_2=0.98, global_clipnorm=1.0)
    objective = losses.translation_objective(model, config.label_smoothing)
    run.write_config()
    run.write("vocabulary.json", vocabulary.to_json())
    console.print(
        f"{model.count_params():,} parameters, {batches.pairs:,} pairs of at most "
        f"{config.longest} tokens, {backends.name}; Ctrl-C stops, `--run-dir {run.path}` goes on"
    )
    mean_loss = losses.pair_loss(model)
    state = trainer.fit(
        model, optimizer, objective, batches, run,
        epochs=config.epochs, batch_size=1, seed=config.seed,
        evaluate=lambda: {"validation_loss": mean_loss(held_out["validation"])},
        checkpoint_steps=config.checkpoint_steps, console=console,
    )  # fmt: skip
    model.save_weights(run.path / "model.weights.h5")
    run.write("model.json", model.to_json(indent=2).encode())
    scores = translation.write_report(
        run, state.history, model, vocabulary, parts, console, config.num_beams, config.test_pairs
    )
    metrics = trainer.metrics(
        "translate", model, state, seed=config.seed, train_examples=batches.pairs,
        epochs=config.epochs, test_loss=mean_loss(held_out["test"]), **scores,
    )  # fmt: skip
    run.write_metrics(metrics)
    console.print(
        f"Test loss {metrics['test_loss']:.3f} nats a token, by frequency alone "
        f"{metrics['unigram_test_loss']:.3f}. Results are in {run.path}\n"
    )
    return metrics


if __name__ == "__main__":
    sys.exit(cli.run(lambda: main(tyro.cli(Config))))
