"""Weights from and to other frameworks. None of them needs to be installed."""
