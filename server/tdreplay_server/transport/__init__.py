"""gRPC and nothing else: it receives calls, bounds and guards them, decodes requests, and encodes answers.

It may import tables, checkpoints, durability, storage and system. Only this folder imports gRPC. Only the modules beside this folder import it.
"""
