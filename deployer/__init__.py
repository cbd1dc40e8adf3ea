"""The resident deployer: it makes every target serve the version its model's alias names."""
