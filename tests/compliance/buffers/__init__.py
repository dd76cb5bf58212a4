"""The API that all buffers share: what is stored, what comes back, and what is refused."""
