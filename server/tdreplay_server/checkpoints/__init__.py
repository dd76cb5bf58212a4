"""Consistent copies of a table in a directory of their own: how they are taken, written, checked, and made into tables again.

It may import durability, storage and system. It does not know how rows are sampled.
"""
