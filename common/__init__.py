"""Shared by all other folders: command line, files, devices, timing."""

import sys
import warnings

from . import quick_help

# diffusers 0.24.0 triggers this on every import with a newer torch; users can do nothing about it.
warnings.filterwarnings("ignore", message=".*_register_pytree_node.*", category=FutureWarning)

if quick_help.is_asked_for(sys.argv[1:]):
    quick_help.install()
