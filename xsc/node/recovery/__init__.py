"""Brings a node back: from its peers, or from a backup."""
