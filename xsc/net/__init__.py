"""Signed calls between peers: framing, signatures, replay, peers known, transports."""
