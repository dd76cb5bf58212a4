"""Streams of batches: how they are asked for, put together, and brought to the training device.

It may import transport. It does not know how rows are written.
"""
