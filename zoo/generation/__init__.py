"""Text generation: incremental decoding, sampling, beam search, completion and translation."""
