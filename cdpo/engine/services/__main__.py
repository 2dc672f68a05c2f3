"""`python -m cdpo.engine.services FOLDER`: keeps the service of a room, see keeper.py."""

import sys
from pathlib import Path

from cdpo.engine.services.keeper import main

sys.exit(main(Path(sys.argv[1])))
