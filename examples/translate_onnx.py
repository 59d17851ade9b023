"""Translates a sentence with an exported `transformer`, on ONNX Runtime and NumPy alone.

    pip install onnxruntime numpy tokenizers
    zoo export transformer-eng-spa --format onnx --generation --out translator
    python translate_onnx.py translator "The sea is calm."

`prefill` takes the ids of the sentence, (B, S), and those of the beginning of its translation,
(B, T); `step` takes one token more, (B, 1). Both return the logits of the next token, (B, V), and
the keys and values of all tokens, which the next `step` takes with the prefix "past_".
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

BOS = 0  # begins and ends a translation


def load(directory: Path, name: str):
    """A file as a function from inputs by name to the logits and the inputs of the next step."""
    session = onnxruntime.InferenceSession(directory / f"{name}.onnx")
    names = [output.name for output in session.get_outputs()]

    def run(**inputs):
        outputs = dict(zip(names, session.run(None, inputs)))
        return outputs.pop("logits"), {f"past_{name}": x for name, x in outputs.items()}

    return run


def translate(directory: Path, source: list[int], count: int):
    """Yields the most likely tokens of the translation, without BOS."""
    content = json.loads((directory / "generation.json").read_text())
    prefill, step = load(directory, "prefill"), load(directory, "step")
    padding = np.zeros(1, np.int32)  # tokens before the beginning, in a batch of unequal ones
    ids = np.array([[BOS]], np.int32)
    logits, past = prefill(ids=ids, padding=padding, source=np.array([source], np.int32))
    for index in range(min(count, content["context"])):
        token = int(logits[0].argmax())
        if token == BOS:
            return
        yield token
        if index + 1 < content["context"]:
            # The keys and values of the sentence, which `prefill` returned, stay as they are.
            logits, later = step(ids=np.array([[token]], np.int32), padding=padding, **past)
            past |= later


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=Path, help="what `zoo export --generation` wrote")
    parser.add_argument("sentence", help="sentence to translate")
    parser.add_argument("--tokens", type=int, default=100, help="largest number (%(default)s)")
    arguments = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(arguments.directory / "vocabulary.json"))
    source = tokenizer.encode(arguments.sentence).ids
    tokens = [*translate(arguments.directory, source, arguments.tokens)]
    print(tokenizer.decode(tokens).strip())
