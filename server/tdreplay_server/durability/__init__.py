"""The row log of a table, and what of it survives a crash: levels of durability, journal, ledger of numbered inserts, recovery.

It may import storage and system. It does not know checkpoints, samplers or limiters: it tells a listener which rows are live.
"""
