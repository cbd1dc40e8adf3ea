"""The tiny model of the tests: the one that `weighbridge compat` tries engines out with."""

from examples.tiny_model import CONTEXT, make, tiny_model

__all__ = ["CONTEXT", "make", "tiny_model"]
