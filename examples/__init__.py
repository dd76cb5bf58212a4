"""Programs that use tdreplay."""
