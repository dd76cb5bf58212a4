"""The oldest versions that tdreplay may have: a line for pip each, out of the requirements of what is installed. Arguments: the extras.

Without torch: its old builds for the processor alone are nowhere where pip looks by itself. Where TorchRL is among them, without tensordict: TorchRL
needs a newer one than a client does.
"""

import re
import sys
from importlib.metadata import requires

from packaging.requirements import Requirement

extras = ["", *sys.argv[1:]]
wanted = list(map(Requirement, requires("tdreplay") or ()))
wanted = [one for one in wanted if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in extras)]
floors = {one.name: floor[1] for one in wanted if (floor := re.search(r">=([^,]+)", str(one.specifier)))}
floors.pop("torch", None)
if "torchrl" in floors:
    del floors["tensordict"]
for name, version in floors.items():
    print(f"{name}=={version}")
