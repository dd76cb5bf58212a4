"""The contract of tdreplay: what a replay buffer does, how its batches travel, and how it fails.

`tdreplay_server` and `tdreplay_client` both build on this package, and never on each other.
"""
