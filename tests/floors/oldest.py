"""The oldest versions that a client may have: a line for pip each, out of what is installed as tdreplay's requirements.

Without torch: its old builds for the processor alone are nowhere where pip looks by itself.
"""

import re
from importlib.metadata import requires

from packaging.requirements import Requirement

for text in requires("tdreplay") or ():
    requirement = Requirement(text)
    floor = re.search(r">=([^,]+)", str(requirement.specifier))
    if floor and requirement.name != "torch" and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
        print(f"{requirement.name}=={floor[1]}")
