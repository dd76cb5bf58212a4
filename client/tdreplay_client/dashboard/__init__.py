"""A web page to look inside a running server: tables, rows, episodes. It only reads, with the calls that the role ``reader`` may make.

``observer`` asks the server once a second what its tables are like; ``tables`` reads rows and episodes when a page asks for them; ``app`` answers a
browser. What the browser shows lies in ``static``.
"""
