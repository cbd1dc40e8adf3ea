"""How each row is scored: plain functions, without `evaluate`, whose import takes 300 MiB."""
