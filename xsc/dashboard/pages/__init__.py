"""What each page asks the node, and the template that shows it."""
