"""Where rows lie: files that are mapped into memory, or the memory of a device; which slots hold live rows; and the lock around them.

It may import system. It does not know what survives a crash.
"""
