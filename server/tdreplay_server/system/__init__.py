"""The operating system: disks, directories and their locks, descriptors, memory, logs, and the points at which tests make a process fail.

It imports nothing of the server. Everything else may import it.
"""
