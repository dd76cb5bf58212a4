"""The wire: what a client in any language may rely on."""
