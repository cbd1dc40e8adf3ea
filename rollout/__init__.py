"""How a version comes to serve at a target, and stays right there."""
