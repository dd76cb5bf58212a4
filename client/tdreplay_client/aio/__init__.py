"""The remote buffer for asyncio: its calls as coroutines, its streams and epochs as async iterators.

It has no protocol of its own: the buffer of `tdreplay_client.buffer` does the work, in threads that the event loop does not wait for.
"""
