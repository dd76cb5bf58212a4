"""Calls over gRPC: the threads in which they run, the guards around them, their handlers, and the encoding of what they answer.

It may import tables, checkpoints, durability, storage and system. Only this folder imports gRPC. Only the modules beside this folder import it.
"""
