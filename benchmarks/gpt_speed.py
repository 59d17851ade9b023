"""Generation and training of a small GPT-2: Hugging Face's, and the zoo's on each backend.

    python -m benchmarks.gpt_speed --task generate
    python -m benchmarks.gpt_speed --task train

4 layers, 4 heads, width 256, vocabulary 512 (3.4 million parameters), batch 4; a prompt of 16
tokens and 240 new ones, or a training step of 256 tokens a row with AdamW, the zoo's within
`Trainer.fit`. Needs `transformers`.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from benchmarks.contenders import BACKENDS, Contender, race, serve, write_json

VOCABULARY, LAYERS, HEADS, WIDTH, CONTEXT = 512, 4, 4, 256, 256
EXAMPLES = 64


@dataclass(frozen=True)
class Config:
    """Time a small GPT-2; the contenders take turns."""

    task: Literal["generate", "train"] = "generate"
    """Task that is timed."""
    rounds: int = 7
    """Number of timed turns of each contender."""
    steps: int = 4
    """Number of timed training steps in a turn, after one that is not timed."""
    warmup: int = 2
    """Number of turns of each contender before the timed ones."""
    batch_size: int = 4
    """Number of rows."""
    prompt: int = 16
    """Number of tokens in a prompt."""
    new_tokens: int = 240
    """Number of tokens to generate."""
    only: tuple[str, ...] = BACKENDS
    """Backends that take part, beside Hugging Face's model."""
    worker: str | None = None
    """Internal: the contender that this process is."""
    json: Path | None = None
    """JSON file to which the figures are added."""

    @property
    def tokens(self) -> int:
        """Number of tokens that a call generates or a step learns from."""
        return self.batch_size * (self.new_tokens if self.task == "generate" else CONTEXT)


def token_ids(rows: int, length: int) -> np.ndarray:
    """Random token ids, (rows, length) int32."""
    return np.random.default_rng(0).integers(0, VOCABULARY, (rows, length)).astype(np.int32)


def hugging_face(config: Config) -> Callable[[], Any]:
    """Call of Hugging Face's `generate`, or a training step in PyTorch."""
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
            bos_token_id=None, eos_token_id=None, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    )  # fmt: skip
    if config.task == "generate":
        prompts = torch.from_numpy(token_ids(config.batch_size, config.prompt)).long()
        settings = {"max_new_tokens": config.new_tokens, "do_sample": False, "pad_token_id": 0}
        mask = torch.ones_like(prompts)
        model.eval()
        return lambda: model.generate(prompts, attention_mask=mask, **settings)

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = torch.from_numpy(token_ids(config.batch_size, CONTEXT + 1)).long()

    def step() -> float:
        logits = model(batch[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return step


def zoo_generation(config: Config) -> Callable[[], Any]:
    """Call of the zoo's `generate`."""
    from zoo import gpt
    from zoo.generation.sampling import generate

    model = gpt(VOCABULARY, CONTEXT, LAYERS, HEADS, WIDTH)
    prompts = list(token_ids(config.batch_size, config.prompt))
    return lambda: generate(model, prompts, config.new_tokens, temperature=0.0)


def zoo_training(config: Config) -> tuple[Any, Any]:
    """Compiled trainer of the zoo's GPT, and batches of random tokens."""
    from zoo import Trainer, gpt
    from zoo.training import AdamW, Batches, CrossEntropy

    trainer = Trainer(gpt(VOCABULARY, CONTEXT, LAYERS, HEADS, WIDTH))
    trainer.compile(AdamW(1e-3, decay=0.01), CrossEntropy())
    ids = token_ids(EXAMPLES, CONTEXT + 1)
    return trainer, Batches((ids[:, :-1], ids[:, 1:]), config.batch_size, seed=0)


def main(config: Config) -> dict[str, Any]:
    if config.worker:
        from benchmarks.step_timer import serve_fit
        from zoo.backends import backend

        backend.keep_malloc_pages()  # in each contender
        steps, skip = (config.steps, 1) if config.task == "train" else (1, 0)
        if config.worker == "hugging face":
            serve(hugging_face(config), steps, skip)
        elif config.task == "generate":
            serve(zoo_generation(config), steps, skip)
        else:
            serve_fit(*zoo_training(config), steps, skip)
        return {}
    command = ["-m", "benchmarks.gpt_speed", "--task", config.task]
    command += ["--batch-size", str(config.batch_size), "--prompt", str(config.prompt)]
    command += ["--new-tokens", str(config.new_tokens), "--steps", str(config.steps), "--worker"]
    contenders = {"hugging face": Contender([*command, "hugging face"], "torch")}
    for name in config.only:
        if importlib.util.find_spec(name):
            contenders[f"zoo {name}"] = Contender([*command, "zoo"], name)
    results = race(contenders, "hugging face", config.warmup, config.rounds, config.tokens)
    if config.json:
        write_json(config.json, {config.task: results})
    return results


if __name__ == "__main__":
    main(tyro.cli(Config))
