"""The workloads in PyTorch: modules and `torch.optim`; and Hugging Face's GPT-2.

The modules have the zoo's weights.
"""

import re
import tempfile
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import torch
from torch import nn

from benchmarks import workloads
from benchmarks.document import MY_NET
from benchmarks.document import make_step as document_step
from benchmarks.nanogpt import GPT as NanoGPT
from benchmarks.native import torch_diffusion
from benchmarks.workloads import GPT, Diffusion, Generation, Images, Recurrent, Sampling, Weights
from zoo.interop import huggingface, pytorch

Batch = Any
Step = Callable[[Batch], Any]


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def tensors(batch: Batch) -> Any:
    return keras.tree.map_structure(lambda x: torch.from_numpy(x).to(device()), batch)


# ------------------------------------------------------------------ training


class RecurrentModel(nn.Module):
    """Token ids (B, T) to logits (B, T, vocabulary)."""

    def __init__(self, cell: str, vocabulary: int, width: int):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        kinds = {"lstm": nn.LSTM, "gru": nn.GRU}
        self.rnn = kinds[cell](width, width, batch_first=True)
        self.output = nn.Linear(width, vocabulary)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.output(self.rnn(self.embedding(ids))[0])


class Perceptron(nn.Module):
    """Images (B, 28, 28, 1) to logits (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden1, self.output = nn.Linear(784, 512), nn.Linear(512, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.output(nn.functional.relu(self.hidden1(images.flatten(1))))


def optimization_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, prepare: Callable[[Any], Any] = lambda x: x
) -> Step:
    """Step on the mean cross-entropy of a batch (x, y)."""

    def step(batch: Batch) -> torch.Tensor:
        x, y = tensors(batch)
        loss = nn.functional.cross_entropy(model(prepare(x)).flatten(0, -2), y.long().flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def document(workload: Images, network: keras.Model) -> Step:
    """The document's own step, with its batches of images (B, 3, 48, 48)."""
    model = MY_NET(10).to(device())
    load_state(model, network)
    model.dropout.p = workload.dropout
    train = document_step(model, weight_decay=workload.l2)

    def step(batch: Batch) -> float:
        x, y = tensors(batch)
        return train(x.permute(0, 3, 1, 2).contiguous(), y.long())

    return step


def load_state(model: nn.Module, network: keras.Model) -> None:
    state = pytorch.state_dict(network)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})


def training_step(workload: Any, network: keras.Model) -> Step:
    """Function of a batch that trains and returns the loss.

    Args:
        workload: Workload that trains.
        network: The zoo's model, whose weights the module gets.
    """
    if isinstance(workload, Images) and workload.model == "cnn_48x48":
        return document(workload, network)
    if isinstance(workload, Diffusion):
        return diffusion_step(workload, workloads.weights_of(network))
    adam = torch.optim.Adam
    if isinstance(workload, GPT):
        model: nn.Module = load_gpt(workload, workloads.weights_of(network)).to(device())
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=workloads.DECAY)
        return optimization_step(model, optimizer)
    if isinstance(workload, Recurrent):
        model = RecurrentModel(workload.cell, workload.vocabulary, workload.width).to(device())
        load_state(model, network)
        return optimization_step(model, adam(model.parameters(), lr=1e-3))
    model = Perceptron().to(device())
    load_state(model, network)
    return optimization_step(model, adam(model.parameters(), lr=1e-3, weight_decay=workload.l2))


def diffusion_step(workload: Diffusion, weights: Weights) -> Step:
    model = diffusion_model(workload, weights)
    trainer = torch_diffusion.Trainer(model, momentum=workloads.MOMENTUM)
    prompts = torch.tensor(workload.prompts, device=device()).long()

    def step(batch: Batch) -> float:
        if isinstance(batch, tuple):
            x0, t, noise, prompt = tensors(batch)
            return trainer.step(channels_first(x0), t, channels_first(noise), prompt)
        drawn = tensors(batch)
        images, labels = channels_first(drawn["image"]), drawn["label"].long()
        inputs = torch_diffusion.training_inputs(images, labels, prompts, workload.timesteps)
        return trainer.step(*inputs)

    return step


def diffusion_model(workload: Diffusion, weights: Weights) -> torch_diffusion.TextToImage:
    model = torch_diffusion.TextToImage(**workload.arguments)
    torch_diffusion.load(model, weights)
    return model.to(device())


def channels_first(images: torch.Tensor) -> torch.Tensor:
    return images.permute(0, 3, 1, 2).contiguous()


def load_gpt(sizes: GPT, weights: Weights) -> NanoGPT:
    """A GPT with the zoo's weights."""
    model = NanoGPT(
        sizes.vocabulary, sizes.length, sizes.layers, sizes.heads, sizes.width, approximate="tanh"
    )
    names = {"attention_norm": "norm1", "feed_forward_norm": "norm2", "attention/output": "out",
             "feed_forward/up": "up", "feed_forward/down": "down"}  # fmt: skip
    state = {"embedding.weight": weights["embedding/embeddings"],
             "positions.weight": weights["positions/table"]}  # fmt: skip
    for path, array in weights.items():
        if match := re.fullmatch(r"(?:block(\d+)/)?(.+)/(kernel|bias|gamma|beta)", path):
            number, layer, kind = match.groups()
            if layer.startswith("attention/") and layer != "attention/output":
                continue
            module = f"blocks.{int(number) - 1}.{names[layer]}" if number else layer
            state[f"{module}.{'weight' if kind in ('kernel', 'gamma') else 'bias'}"] = array.T
    for index in range(sizes.layers):
        for kind, name in (("kernel", "weight"), ("bias", "bias")):
            attention = f"block{index + 1}/attention"
            parts = [weights[f"{attention}/{part}/{kind}"] for part in ("query", "key", "value")]
            joined = np.concatenate(parts, axis=-1)
            state[f"blocks.{index}.qkv.{name}"] = joined.T
    model.load_state_dict({name: torch.tensor(array) for name, array in state.items()})
    return model


# ------------------------------------------------------------------ generation and sampling


def generator(workload: Generation, network: keras.Model) -> Callable[[], np.ndarray]:
    """Greedy decoding with cached keys and values, in a loop in Python."""
    sizes = workload.gpt
    model = load_gpt(sizes, workloads.weights_of(network)).to(device())
    prompts = torch.from_numpy(workload.prompts).long().to(device())
    shape = 2, workload.batch_size, sizes.heads, sizes.length, sizes.width // sizes.heads

    @torch.inference_mode()
    def generate() -> np.ndarray:
        caches = [torch.zeros(shape, device=device()) for _ in range(sizes.layers)]
        ids, start, tokens = prompts, 0, []
        for _ in range(workload.new_tokens):
            token = model(ids, caches, start)[:, -1].argmax(-1)
            tokens.append(token)
            start += ids.shape[1]
            ids = token[:, None]
        return torch.stack(tokens, 1).cpu().numpy()

    return generate


def sampler(workload: Sampling, weights: Weights) -> Callable[[np.ndarray], np.ndarray]:
    """Function of the initial noise, (B, H, W, C), that samples images."""
    model = diffusion_model(workload.model, weights)
    prompt = torch.from_numpy(workload.prompts).long().to(device())

    def sample(noise: np.ndarray) -> np.ndarray:
        images = torch_diffusion.sample(
            model, prompt, channels_first(tensors(noise)), workload.steps, workload.guidance_scale
        )
        return images.permute(0, 2, 3, 1).cpu().numpy()

    return sample


# ------------------------------------------------------------------ Hugging Face


def hugging_face(network: keras.Model) -> Any:
    """Hugging Face's GPT-2 without dropout, with the zoo's weights."""
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        huggingface.save(network, folder)
        rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        model = transformers.GPT2LMHeadModel.from_pretrained(folder, **rates)
    return model.to(device())


def hugging_face_step(workload: GPT, network: keras.Model) -> Step:
    model = hugging_face(network).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=workloads.DECAY)

    class Logits(nn.Module):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return model(ids).logits

    return optimization_step(Logits(), optimizer)


def hugging_face_generator(workload: Generation, network: keras.Model) -> Callable[[], np.ndarray]:
    """Hugging Face's own `generate`."""
    model = hugging_face(network).eval()
    prompts = torch.from_numpy(workload.prompts).long().to(device())
    options = {"max_new_tokens": workload.new_tokens, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(prompts)

    def generate() -> np.ndarray:
        ids = model.generate(prompts, attention_mask=mask, eos_token_id=None, **options)
        return ids[:, workload.prompt :].cpu().numpy()

    return generate
