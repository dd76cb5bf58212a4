"""Tables by name, and what a table does: it chooses the rows of a batch, and reads them.

It may import checkpoints, durability, storage and system. It knows no gRPC and no messages.
"""
