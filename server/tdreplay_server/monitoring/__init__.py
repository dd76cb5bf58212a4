"""What the server says of itself to Prometheus: the metrics, made when they are asked for of what the other rooms count, and the page that has them.

Only this room knows Prometheus. It changes nothing, and takes no lock that an insert or a batch waits for.
"""
