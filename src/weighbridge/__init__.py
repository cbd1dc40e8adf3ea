"""From base weights to a served endpoint."""
