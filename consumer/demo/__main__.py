"""`python -m consumer.demo`: owns the time before the demo runs and the word on what to install."""

import signal
import sys

# The imports take a second, in which a Ctrl-C has nothing to clean up and needs no traceback.
signal.signal(signal.SIGINT, signal.SIG_DFL)

try:
    from consumer.demo.run import main
except ModuleNotFoundError as error:
    sys.exit(f"the demo needs {error.name}: pip install 'zarr-tile-consumer[demo]'")

if __name__ == "__main__":
    sys.exit(main())
