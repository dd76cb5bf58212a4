"""The contract of tdreplay: what a replay buffer does, how its batches travel, and how it fails.

`tdreplay_server` and `tdreplay_client` both build on this package, and never on each other.
"""

import os

# Before gRPC is imported, which reads it once. With its fork support, gRPC starts its threads again in each fork of the process, where they find the
# parent's calls, and abort the fork. Here a fork uses none of the parent's connections anyway. Whoever set the variable knows better.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
