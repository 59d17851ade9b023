"""Generation and training of a small GPT-2: Hugging Face's, and the zoo's on each backend.

    python -m benchmarks.gpt_speed --task generate
    python -m benchmarks.gpt_speed --task train

4 layers, 4 heads, width 256, vocabulary 512 (3.4 million parameters), batch 4; a prompt of 16
tokens and 240 new ones, or a training step of 256 tokens a row with AdamW. Needs `transformers`.
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


@dataclass(frozen=True)
class Config:
    """Time a small GPT-2, the contenders in turn."""

    task: Literal["generate", "train"] = "generate"
    """What is timed."""
    rounds: int = 7
    """Timed calls of each contender."""
    warmup: int = 2
    """Calls before that."""
    batch_size: int = 4
    """Rows."""
    prompt: int = 16
    """Tokens of a prompt."""
    new_tokens: int = 240
    """Tokens to generate."""
    only: tuple[str, ...] = BACKENDS
    """Backends that take part, beside Hugging Face."""
    worker: str | None = None
    """Internal: be one contender and do a call for each line of standard input."""
    json: Path | None = None
    """Also write the figures to this file."""

    @property
    def tokens(self) -> int:
        """Of a call."""
        return self.batch_size * (self.new_tokens if self.task == "generate" else CONTEXT)


def ids(config: Config, length: int) -> np.ndarray:
    shape = config.batch_size, length
    return np.random.default_rng(0).integers(0, VOCABULARY, shape).astype(np.int32)


def hugging_face(config: Config) -> Callable[[], Any]:
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
        prompts = torch.from_numpy(ids(config, config.prompt)).long()
        settings = {"max_new_tokens": config.new_tokens, "do_sample": False, "pad_token_id": 0}
        mask = torch.ones_like(prompts)
        model.eval()
        return lambda: model.generate(prompts, attention_mask=mask, **settings)

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = torch.from_numpy(ids(config, CONTEXT + 1)).long()

    def step() -> float:
        logits = model(batch[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return step


def zoo(config: Config) -> Callable[[], Any]:
    from zoo import gpt
    from zoo.backends import backend
    from zoo.generation.sampling import generate
    from zoo.training import losses
    from zoo.training.optimizers import AdamW

    model = gpt(VOCABULARY, CONTEXT, LAYERS, HEADS, WIDTH)
    if config.task == "generate":
        prompts = ids(config, config.prompt)
        return lambda: generate(model, list(prompts), config.new_tokens, temperature=0.0)
    optimizer = AdamW(1e-3, decay=0.01)
    optimizer.build(model.trainable_variables)
    step = backend.train_step(model, optimizer, losses.language_objective(model))
    batch = backend.on_device(ids(config, CONTEXT + 1))
    return lambda: float(step(batch, np.int32(0))["loss"])


def main(config: Config) -> dict[str, Any]:
    if config.worker:
        from zoo.backends import backend

        backend.keep_malloc_pages()  # for all alike
        serve(hugging_face(config) if config.worker == "hugging face" else zoo(config))
        return {}
    command = ["-m", "benchmarks.gpt_speed", "--task", config.task]
    command += ["--batch-size", str(config.batch_size), "--prompt", str(config.prompt)]
    command += ["--new-tokens", str(config.new_tokens), "--worker"]
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
