"""What every layer shares: errors, settings, the artifact store, plugins, environments, processes."""
