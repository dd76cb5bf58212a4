"""What survives a crash: the levels of durability, the journal, the record of numbered blocks, and the order in which an insert writes.

It may import storage and system. It does not know checkpoints or samplers.
"""
