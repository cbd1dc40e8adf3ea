"""The suite every engine is held to, by `weighbridge engines check` and by our own tests."""
