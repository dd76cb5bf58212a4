"""How it is said which shard a server is."""

from __future__ import annotations

__all__ = ["shard_words"]


def shard_words(cluster: str, shard: int | None) -> str:
    """Of a server of this cluster, '' where it is of none, that is this shard; None: it is none. '': it is neither."""
    number = "" if shard is None else f"shard {shard}"
    return " of ".join(filter(None, (number, cluster and f"cluster {cluster!r}")))
