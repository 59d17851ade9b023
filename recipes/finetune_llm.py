"""Fine-tunes a language model of KerasHub on a text file, by low-rank adaptation (LoRA).

    KERAS_BACKEND=jax python recipes/finetune_llm.py --preset gpt2_base_en --text my.txt --quick

Needs `pip install "keras-zoo[hub]"`, and takes the preset of any `CausalLM`. Its weights stay; to
the kernels of each attention's queries and values it adds products of two thin matrices, and trains
these alone. The last tenth of the text is held out. The same `--run-dir` goes on where it stopped,
and a finished run answers another `--prompt`. What was learnt is there for use elsewhere:

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

import tyro

from zoo import backends, cli
from zoo.datasets import tokenizer
from zoo.datasets.token_windows import RandomTokenWindows
from zoo.evaluation import language_model, plots
from zoo.interop import keras_hub
from zoo.training import losses, trainer
from zoo.training.optimizers import AdamW, learning_rate_schedule
from zoo.training.run_directory import RunDirectory, TrainingConfig, open_run, set_defaults
from zoo.validation import check_sizes


@dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    """Fine-tune a language model of KerasHub on a text file, and let it write."""

    preset: str
    """A name that KerasHub knows, such as gpt2_base_en, or a folder that `save_to_preset` wrote."""
    token_windows: Path
    """A file in UTF-8; to go on with a run, its content must be the same."""
    held_out: float = 0.1
    """Share of the text, its end, to test on instead of training."""
    rank: int = 8
    """Columns of the thin matrices."""
    length: int = 128
    """Tokens that the model sees at once."""
    steps: int | None = None
    """Training steps; by default 500, with --quick 50."""
    batch_size: int = 4
    """Pieces of a training step, from places drawn at random."""
    learning_rate: float = 5e-4
    """AdamW's step size at its largest; it rises for up to 100 steps and falls to a tenth."""
    prompt: str = "Once upon a time"
    """What the texts written before and after training begin with."""
    max_new_tokens: int = 100
    """Of each; it may end earlier."""
    sampler: Literal["greedy", "beam", "contrastive"] = "contrastive"
    """KerasHub's way to choose them; none of these three draws random numbers."""
    quick: bool = False
    """A short run: 50 steps, where not set otherwise."""
    text_sha256: str = field(init=False)

    def __post_init__(self) -> None:
        set_defaults(self, steps=50 if self.quick else 500)
        check_sizes(rank=self.rank, length=self.length, steps=self.steps)
        check_sizes(batch_size=self.batch_size, checkpoint_steps=self.checkpoint_steps)
        check_sizes(max_new_tokens=self.max_new_tokens)
        if not 0 < self.held_out < 1:
            raise ValueError(f"`held_out` must lie in (0, 1). Received: held_out={self.held_out}")
        if not self.prompt.strip():
            raise ValueError(f"`prompt` must not be empty. Received: {self.prompt!r}")
        digest = hashlib.sha256(tokenizer.read_file(self.text).encode()).hexdigest()
        object.__setattr__(self, "text_sha256", digest)


def main(config: Config) -> dict[str, Any]:
    """Runs the recipe, or goes on with it, writes before and after, and returns the metrics."""
    console = cli.console()
    run = open_run("finetune_llm", config, "text", "prompt", "max_new_tokens", "sampler")
    if config.deterministic:
        backends.backend.make_deterministic()
    reader = keras_hub.CausalLMAdapter(
        keras_hub.load_causal_lm(
            config.preset, config.rank, config.seed, config.dtype_policy, config.sampler
        )
    )

    def show(when: str) -> None:
        written = reader.generate(config.prompt, config.max_new_tokens)
        console.print(f"{when}:\n{written}\n", markup=False, highlight=False, soft_wrap=True)

    show("Before training")
    if run.metrics:
        score = run.metrics["test_loss"]
        console.print(f"The run in {run.path} is finished: test loss {score:.4f} nats a token")
        reader.model.backbone.load_lora_weights(run.path / "model.lora.h5")
    metrics = run.metrics or train(config, run, reader)
    show("After training")
    return metrics


def train(config: Config, run: RunDirectory, reader: keras_hub.CausalLMAdapter) -> dict[str, Any]:
    """Trains the thin matrices, or goes on with it; writes and returns the metrics."""
    console = cli.console()
    model, content = reader.model, tokenizer.read_file(config.text)
    border = round((1 - config.held_out) * len(content))
    ids, test_ids = (reader.encode(part) for part in (content[:border], content[border:]))
    reader.check_length(config.length, len(ids), len(test_ids))
    trained = reader.lora
    parameters = sum(math.prod(variable.shape) for variable in trained.variables)
    count = config.steps * config.batch_size
    rate = learning_rate_schedule("warmup_cosine", config.learning_rate, config.steps)
    console.print(
        f"{parameters:,} of {model.count_params():,} parameters are trained, on {len(ids):,} "
        f"tokens of text, {backends.name}; Ctrl-C stops, `--run-dir {run.path}` goes on"
    )
    mean_loss = language_model.window_loss(reader, config.length)
    before = mean_loss(test_ids)
    state = trainer.fit(
        trained, AdamW(rate, 0.01, global_clipnorm=1.0), losses.language_objective(reader),
        RandomTokenWindows(ids, config.length, count, config.seed), run,
        epochs=1, batch_size=config.batch_size, seed=config.seed,
        evaluate=lambda: {"validation_loss": mean_loss(test_ids)},
        checkpoint_steps=config.checkpoint_steps, console=console,
    )  # fmt: skip
    test_loss = state.history[-1]["validation_loss"]
    bits = test_loss / math.log(2) * len(test_ids) / len(content[border:])
    model.backbone.save_lora_weights(run.path / "model.lora.h5")
    plots.plot_losses(state.losses, state.history[-1]).savefig(run.path / "loss.png", dpi=120)
    metrics = trainer.metrics(
        "finetune_llm", model, state, preset=config.preset, trained_parameters=parameters,
        seed=config.seed, train_examples=count, epochs=1, test_loss=test_loss,
        test_loss_before=before, test_bits_per_character=bits,
    )  # fmt: skip
    run.write_metrics(metrics)
    console.print(
        f"Test loss {before:.4f} nats a token before and {test_loss:.4f} after, then {bits:.4f} "
        f"bits a character. Results are in {run.path}\n"
    )
    return metrics


if __name__ == "__main__":
    sys.exit(cli.run(lambda: main(tyro.cli(Config))))
