"""The wire contract, version 1: the proto and the code generated from it."""
