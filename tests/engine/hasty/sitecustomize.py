"""Put this folder on PYTHONPATH, and keepers of services lose patience within a second or two."""

import sys

if "cdpo.engine.services" in sys.orig_argv:
    from cdpo.engine.services import keeper, probe

    keeper.LINGER, keeper.SILENCE, keeper.ASK_READY, keeper.SETTLE, probe.PATIENCE = 0.8, 1.5, 0.3, 5.0, 0.5
