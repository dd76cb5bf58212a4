"""Tables by name, and what a table is made of: a row log, a sampler, a rate limiter and a config.

It may import checkpoints, durability, storage and system. It knows no gRPC and no messages. A sampler is a module in `samplers`, a rate limiter one
in `limiters`.
"""
