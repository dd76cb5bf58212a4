"""Trajectories: which rows are steps of which episode, which of them are anchors, and the windows around these.

It may import samplers and storage, and of durability only what tells it which rows are live. It knows no disk and no messages.
"""
