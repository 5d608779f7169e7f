"""Quantised weights: made from a checkpoint, written as compressed-tensors, read for serving.

Read in this order: ``scheme`` (numbers from weights), ``packing`` (the format's layout and names), ``write``, ``read``.
"""
