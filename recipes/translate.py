"""Trains a transformer to translate English verses into Spanish.

    KERAS_BACKEND=jax python recipes/translate.py --quick

Seven books are held out; both languages share a vocabulary of subwords. The full setting takes some
50 minutes on two cores and reaches a BLEU of 20.1 and a chrF of 41.0. The same `--run-dir` resumes
a run. Then `zoo translate "In the beginning" --run-dir DIR` translates.

Source: the document's section "Architecture de Transformateur"; Vaswani et al., 2017.
"""

import sys
from dataclasses import dataclass
from typing import Annotated, Any

import keras

from zoo import Trainer, backends, cli, transformer
from zoo.datasets import parallel_text
from zoo.datasets.parallel_text import LengthBuckets, Pair
from zoo.datasets.tokenizer import Tokenizer
from zoo.evaluation import translation
from zoo.training import Adam, Batches, CrossEntropy
from zoo.training.config import TrainingConfig, open_run, set_defaults
from zoo.training.losses import cross_entropy
from zoo.training.optimizers import learning_rate_schedule
from zoo.training.run_directory import RunDirectory
from zoo.validation import Beams, Count, Layers, Positive, Rate, Size, Vocabulary, validated, whole

CONTEXT = 256  # tokens of the longest sentence that can be translated


@validated
@dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    """Train a transformer on English and Spanish verses, and let it translate."""

    vocabulary_size: Vocabulary = 4000
    """Number of subwords of both languages together."""
    num_layers: Layers = 3
    """Number of encoder blocks, and of decoder blocks."""
    num_heads: Size = 4
    """Number of attention heads in each block."""
    hidden_dim: Size = 192
    """Width of a token's vector."""
    intermediate_dim: Size = 768
    """Width of the feed-forward network in each block."""
    dropout: Rate = 0.1
    """Fraction dropped of the embeddings and of the output of each sublayer."""
    epochs: Count | None = None
    """Passes over the training pairs; by default 9, with --quick 4."""
    max_length: Annotated[int, whole(1, CONTEXT)] | None = None
    """Number of tokens of the longest training sentence; by default 64, with --quick 24."""
    batch_tokens: Size = 1024
    """Number of tokens on either side of a training step; its sentences are of similar length."""
    learning_rate: Positive = 1e-3
    """Largest step size of Adam; it rises for up to 400 steps and falls to a tenth."""
    label_smoothing: Rate = 0.1
    """Share of each label that is spread over the vocabulary."""
    num_beams: Beams = 4
    """Number of beams of the beam search."""
    test_pairs: Count | None = None
    """Number of test pairs to translate; by default all, with --quick 64."""
    quick: bool = False
    """A short run: 4 epochs over short sentences, where not set otherwise."""

    def __post_init__(self) -> None:
        quick = {"epochs": 4, "max_length": 24, "test_pairs": 64}
        set_defaults(self, **(quick if self.quick else {"epochs": 9, "max_length": 64}))


def main(config: Config) -> dict[str, Any]:
    """Runs the recipe, or resumes it, and returns the metrics."""
    console = cli.recipe_console(config.quiet)
    with open_run("translate", config, extendable="epochs") as run:
        if metrics := run.metrics:
            scores = f"BLEU {run.result('bleu'):.1f}, chrF {run.result('chrf'):.1f}"
            console.print(f"The run in {run.path} is finished: {scores}")
            return metrics
        config.prepare()
        parts = {part: parallel_text.split(part) for part in ("train", "validation", "test")}
        path = run.input_path("vocabulary.json")
        tokenizer = parallel_text.make_tokenizer(path, config.vocabulary_size)
        network = transformer(
            len(tokenizer), len(tokenizer), CONTEXT, config.num_layers, config.num_heads,
            config.hidden_dim, config.intermediate_dim, norm_first=True, share_embeddings=True,
            dropout=config.dropout, seed=config.seed, dtype=config.dtype_policy,
        )  # fmt: skip
        return train(config, run, parts, tokenizer, network)


def train(
    config: Config,
    run: RunDirectory,
    parts: dict[str, list[Pair]],
    tokenizer: Tokenizer,
    network: keras.Model,
) -> dict[str, Any]:
    """Trains the network, or resumes its training; writes and returns the metrics."""
    console = cli.recipe_console(config.quiet)
    ids = {part: parallel_text.encoded(pairs, tokenizer) for part, pairs in parts.items()}
    batch_tokens = config.batch_tokens * config.gradient_accumulation
    buckets = LengthBuckets(*ids["train"], batch_tokens, config.max_length, config.seed)
    batches = Batches(buckets, batch_size=1, seed=config.seed)
    held_out = {
        part: Batches(LengthBuckets(*ids[part], config.batch_tokens, CONTEXT), batch_size=1)
        for part in ("validation", "test")
    }
    steps = config.epochs * batches.steps_per_epoch
    rate = learning_rate_schedule("warmup_cosine", config.learning_rate, steps, warmup_steps=400)

    trainer = Trainer(network)
    trainer.compile(
        Adam(rate, beta_2=0.98, global_clipnorm=1.0),
        CrossEntropy(config.label_smoothing),
        weighted_metrics=[keras.metrics.MeanMetricWrapper(cross_entropy, name="nats")],
    )
    run.write_input("vocabulary.json", tokenizer.to_json())
    console.print(
        f"{network.count_params():,} parameters, {buckets.pairs:,} pairs of at most "
        f"{config.max_length} tokens, {backends.name}; Ctrl-C stops, `--run-dir {run.path}` goes on"
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
    test_loss = trainer.evaluate(held_out["test"], verbose=0, return_dict=True)["nats"]

    run.save_model(network)
    scores = translation.write_report(
        run, history, network, tokenizer, parts, console, config.num_beams, config.test_pairs
    )
    console.print(
        f"Test loss {test_loss:.3f} nats a token, by frequency alone "
        f"{scores['unigram_test_loss']:.3f}"
    )
    return run.finish(
        "translate", network, checkpoint.state, console, seed=config.seed,
        train_examples=buckets.pairs, epochs=config.epochs, test_loss=test_loss, **scores,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(cli.run(lambda: cli.run_recipe(main, Config)))
