"""Rows on their way to the server: how they are collected, numbered, sent, acknowledged, and sent again.

It may import transport. It does not know how batches are read.
"""
