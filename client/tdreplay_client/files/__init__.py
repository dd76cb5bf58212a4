"""Tables to files and back: shards of safetensors, npz or Parquet in a folder, with a manifest.

What is read here may come from anybody: every size is checked before memory is taken for it, and nothing in a file is run.
"""

from tdreplay_client.files.exporting import Exported, export_table
from tdreplay_client.files.importing import Imported, import_table
from tdreplay_client.files.manifest import Manifest, read_manifest

__all__ = ["Exported", "Imported", "Manifest", "export_table", "import_table", "read_manifest"]
