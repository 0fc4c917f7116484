"""Distributed and accelerated MNIST training: five published systems as recipes, one training loop."""

__version__ = "0.1.0"
