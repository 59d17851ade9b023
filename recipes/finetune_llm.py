"""Fine-tunes a language model of KerasHub on a text file, by low-rank adaptation (LoRA).

    KERAS_BACKEND=jax python recipes/finetune_llm.py --preset gpt2_base_en --text my.txt --quick

Needs `pip install keras-hub`, and accepts the preset of any `CausalLM`. The weights of the
preset are frozen: only low-rank matrices are trained, whose products are added to the query and
value kernels of each attention layer. The end of the text is held out. The same `--run-dir` resumes
a run; a finished run continues another `--prompt`. KerasHub loads the trained matrices:

    model = keras_hub.models.CausalLM.from_preset("gpt2_base_en")
    model.backbone.load_lora_weights("runs/.../model.lora.h5")

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022.
"""

import hashlib
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from zoo import Trainer, backends, cli
from zoo.datasets import tokenizer
from zoo.datasets.token_windows import TokenWindows
from zoo.evaluation.plots import plot_curves
from zoo.interop.keras_hub import CausalLMAdapter, load_causal_lm
from zoo.training import AdamW, Batches, CrossEntropy
from zoo.training.config import TrainingConfig, open_run, set_defaults
from zoo.training.optimizers import learning_rate_schedule
from zoo.training.run_directory import RunDirectory
from zoo.validation import Count, Fraction, NewTokens, Positive, Size, validated


@validated
@dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    """Fine-tune a language model of KerasHub on a text file, and let it continue a text."""

    preset: str
    """Name of a KerasHub preset such as gpt2_base_en, or a folder that `save_to_preset` wrote."""
    text: Path
    """Text file in UTF-8; a run that is resumed needs the same content."""
    held_out: Fraction = 0.1
    """Fraction of the text, at its end, that is held out for evaluation."""
    rank: Size = 8
    """Rank of the low-rank matrices."""
    length: Size = 128
    """Number of tokens that the model reads at once."""
    epochs: Count | None = None
    """Epochs of --steps-per-epoch steps; by default 10, with --quick 5."""
    steps_per_epoch: Count | None = None
    """Training steps before each evaluation; by default 50, with --quick 10."""
    batch_size: Size = 4
    """Windows in a batch; in training from random places of the text."""
    learning_rate: Positive = 5e-4
    """Largest step size of AdamW; it rises for up to 100 steps and falls to a tenth."""
    prompt: str = "Once upon a time"
    """Beginning of the texts that are written before and after training."""
    max_new_tokens: NewTokens = 100
    """Maximum number of new tokens in each of these texts."""
    sampler: Literal["greedy", "beam", "contrastive"] = "contrastive"
    """KerasHub's sampler for these texts; none of the three draws random numbers."""
    quick: bool = False
    """A short run: 5 epochs of 10 steps, where not set otherwise."""
    text_sha256: str = field(init=False)

    def __post_init__(self) -> None:
        quick = {"epochs": 5, "steps_per_epoch": 10}
        set_defaults(self, **(quick if self.quick else {"epochs": 10, "steps_per_epoch": 50}))
        if not self.prompt.strip():
            raise ValueError(f"`prompt` must not be empty. Received: {self.prompt!r}")
        digest = hashlib.sha256(tokenizer.read_file(self.text).encode()).hexdigest()
        object.__setattr__(self, "text_sha256", digest)


def main(config: Config) -> dict[str, Any]:
    """Runs the recipe, or resumes it, writes texts before and after, and returns the metrics."""
    console = cli.recipe_console(config.quiet)
    not_results = "text", "prompt", "max_new_tokens", "sampler"
    policy = config.dtype_policy
    with open_run("finetune_llm", config, *not_results, extendable="epochs") as run:
        config.prepare()
        causal_lm = load_causal_lm(config.preset, config.rank, config.seed, policy, config.sampler)
        network = CausalLMAdapter(causal_lm)

        def print_text(when: str) -> None:
            text = network.generate(config.prompt, config.max_new_tokens)
            console.print(f"{when}:\n{text}\n", highlight=False)

        print_text("Before training")
        if run.metrics:
            score = run.result("test_loss")
            console.print(f"The run in {run.path} is finished: test loss {score:.4f} nats a token")
            causal_lm.backbone.load_lora_weights(run.path / "model.lora.h5")
        metrics = run.metrics or train(config, run, network)
    print_text("After training")
    return metrics


def train(config: Config, run: RunDirectory, network: CausalLMAdapter) -> dict[str, Any]:
    """Trains the low-rank matrices, or resumes their training; writes and returns the metrics."""
    console = cli.recipe_console(config.quiet)
    causal_lm, text = network.causal_lm, tokenizer.read_file(config.text)
    border = round((1 - config.held_out) * len(text))
    ids, test_ids = (network.encode(part) for part in (text[:border], text[border:]))
    network.check_length(config.length, len(ids), len(test_ids))
    windows = TokenWindows(ids, config.length, stride=1)
    batch_size = config.batch_size * config.gradient_accumulation
    batches = Batches(windows, batch_size, config.seed, config.steps_per_epoch)
    held_out = Batches(TokenWindows(test_ids, config.length), config.batch_size)
    steps = config.epochs * config.steps_per_epoch
    rate = learning_rate_schedule("warmup_cosine", config.learning_rate, steps)

    trainer = Trainer(network)
    trainer.compile(AdamW(rate, 0.01, global_clipnorm=1.0), CrossEntropy())
    run.write_config()
    trained = sum(math.prod(variable.shape) for variable in trainer.trainable_variables)
    console.print(
        f"{trained:,} of {causal_lm.count_params():,} parameters are trained, on {len(ids):,} "
        f"tokens of text, {backends.name}; Ctrl-C stops, `--run-dir {run.path}` goes on"
    )
    loss_before = trainer.evaluate(held_out, verbose=0)
    checkpoint = run.checkpoint(config.checkpoint_steps, console, only_trainable=True)
    history = trainer.fit(
        batches,
        epochs=config.epochs,
        validation_data=held_out,
        callbacks=config.callbacks(),
        verbose=config.verbose,
        checkpoint=checkpoint,
        gradient_accumulation=config.gradient_accumulation,
    )
    test_loss = trainer.evaluate(held_out, verbose=0)

    bits = test_loss / math.log(2) * len(test_ids) / (len(text) - border)
    run.save_weights("model.lora.h5", causal_lm.backbone.save_lora_weights)
    curves = plot_curves(history, ["loss"], "training", "held out", ["nats a token"])
    run.save_plot("loss.png", curves)
    console.print(f"Test loss {loss_before:.4f} nats a token before and {test_loss:.4f} after")
    return run.finish(
        "finetune_llm", causal_lm, checkpoint.state, console, preset=config.preset,
        trained_parameters=trained, seed=config.seed, train_examples=steps * batch_size,
        epochs=config.epochs, test_loss=test_loss, test_loss_before=loss_before,
        test_bits_per_character=bits,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(cli.run(lambda: cli.run_recipe(main, Config)))
