"""Conversion of weights from and to other frameworks, which need not be installed."""
