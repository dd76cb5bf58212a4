"""The connection to the server: channels, calls, deadlines, repeated tries, and the memory that client and server share.

It imports nothing of the client. Only this folder imports gRPC.
"""
