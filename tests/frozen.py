"""Imported last by the server of tests/forked.py: later searches for garbage pass over its modules.

A search takes half a second otherwise, in every process that starts from the server.
"""

import gc

gc.collect()
gc.freeze()
