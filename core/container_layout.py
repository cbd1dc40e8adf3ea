"""What our container images have in common, for whoever builds them and whoever runs them."""

from typing import Final

USER: Final = 10001
"""User and group, as a number: Kubernetes cannot tell that a name is not root's."""
HOME: Final = "/var/lib/weighbridge"
CACHE: Final = "/var/cache/weighbridge"
"""WEIGHBRIDGE_HOME and WEIGHBRIDGE_CACHE in a container; the user may write there."""
