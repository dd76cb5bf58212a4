"""Who calls, and what each caller may do: roles, tokens, certificates.

This room knows neither gRPC nor tables: it is asked by a guard of `transport`, and by the command that makes tokens.
"""
