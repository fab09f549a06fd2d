"""Python imports this where the folder is on its path: the hook then watches every process of a run."""

import os
import sys

if os.environ.get("CHAOS"):
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    import hook

    hook.install_from_environment()
