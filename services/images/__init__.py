"""Container images of the control plane and of engines, built from the locks."""
