"""`mpload`, but for the limits of requests: a trial of hours of data need not take hours of waiting.

python -m soak.mpload_without_limits COMMAND...
"""

from __future__ import annotations

import sys

from mixpanel_source import settings
from mixpanel_source.cli import app

if __name__ == "__main__":
    for family in settings.LIMITS:
        settings.LIMITS[family] = ((1_000_000, 1.0),)
    app.main(sys.argv[1:])
