"""The commands of `xsc node`."""
