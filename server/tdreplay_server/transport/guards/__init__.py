"""What stands around every call, streams and single calls alike: one file for each guard. Their order is the tuple `guards` in `dispatch`.

A guard may import the call, and what transport may import. It knows neither the other guards nor the handlers.
"""
