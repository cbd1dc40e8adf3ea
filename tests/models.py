"""The tiny model of the tests: the one that `weighbridge compat` tries engines out with."""

from examples.support_tickets.tiny import CONTEXT, make, tiny_model

__all__ = ["CONTEXT", "make", "tiny_model"]
