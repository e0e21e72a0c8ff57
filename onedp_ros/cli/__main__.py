"""``python -m onedp_ros.cli``, for ``accelerate launch -m``."""

import sys

from onedp_ros.cli import main

sys.exit(main())
