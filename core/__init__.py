"""What all layers share: errors, settings, artifact store, plugins, environments, processes."""
