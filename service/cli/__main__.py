"""`python -m service.cli` is `understudy`."""

import sys

from service.cli.parser import main

sys.exit(main())
