"""Pages that the node shows in a browser on its own machine."""
