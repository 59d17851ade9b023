"""Recipes: one script a task, run as `python recipes/NAME.py` or `zoo train NAME`."""
