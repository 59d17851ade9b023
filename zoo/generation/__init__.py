"""Generation: decoding, sampling, beam search, completion, translation."""
