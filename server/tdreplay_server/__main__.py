"""``python -m tdreplay_server``."""

from tdreplay_server.cli import main

if __name__ == "__main__":
    main()
