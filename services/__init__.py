"""This machine as a platform: the services that `weighbridge up` keeps running."""
