"""The subcommands of ``tdreplay``, a file for each subject.

What brings torch is imported inside of the functions that need it: help, and a wrong option, are said at once.
"""
