"""Work pools of Prefect that carry out stages: a base job template for each type."""
