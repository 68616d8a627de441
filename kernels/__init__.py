"""Pallas kernels, one folder an op, installed as `jtok.kernels`."""
