"""Small, complete things made with Weighbridge, or for it to work on."""
