"""Evaluation: metrics, baselines, plots."""
