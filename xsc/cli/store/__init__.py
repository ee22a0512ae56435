"""The commands of `xsc store`."""
