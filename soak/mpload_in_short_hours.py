"""`mpload`, but an hour of the export's limit is shorter and holds fewer requests: as those of a trial's sandbox.

python -m soak.mpload_in_short_hours REQUESTS HOUR_S COMMAND...
"""

from __future__ import annotations

import sys

from mixpanel_source import settings
from mixpanel_source.cli import app

if __name__ == "__main__":
    settings.LIMITS["export"] = ((int(sys.argv[1]), float(sys.argv[2])), (3, 1.0))
    app.main(sys.argv[3:])
