"""The commands of `xsc compute`."""
