"""The command ``tdreplay-server``, also as ``python -m tdreplay_server``."""

import sys

__all__ = ["main"]


def main() -> None:
    """Runs the command; where the server's dependencies are not installed, one line says how to install them."""
    try:
        from tdreplay_server.cli import main as command

        command()
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing.startswith("tdreplay"):
            raise
        sys.exit(f"tdreplay-server: the server needs {missing}, which is not installed: pip install 'tdreplay[server]'")


if __name__ == "__main__":
    main()
