"""`python -m agent` is `understudy-agent`."""

import sys

from agent.cli import main

sys.exit(main())
