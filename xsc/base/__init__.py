"""The vocabulary that every other package may use; imports nothing of XSC."""
