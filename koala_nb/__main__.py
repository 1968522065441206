"""`python -m koala_nb`: the command line where there is no make."""

import sys

from koala_nb.cli import main

sys.exit(main())
