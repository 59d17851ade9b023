"""Computations of the document's sections on activation functions and backpropagation."""
