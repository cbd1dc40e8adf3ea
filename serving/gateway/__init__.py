"""The gateway: one haproxy owns the address of every target on this machine."""
