"""Nonlinear functions over the primitives of a protocol, one a file."""
