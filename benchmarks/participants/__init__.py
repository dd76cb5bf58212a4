"""Who is measured: each module is a program that runs one participant, and imports what its own environment has."""
