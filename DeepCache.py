"""What `import DeepCache` is in a checkout: the plug-in and the forks, as `pip install .` installs them from unets/."""

from unets import *  # noqa: F403
from unets import __all__ as __all__
