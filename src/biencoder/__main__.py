"""``python -m biencoder``, which is what ``torchrun -m biencoder train …`` starts."""

import sys

from biencoder.cli import main

if __name__ == "__main__":
    sys.exit(main())
