"""To be imported last by a forkserver: no collection looks through what was imported before, ever.

A collection writes to every object that it looks at, and a page that a child writes to is no longer shared:
without this, the first collection of each child makes about 100 MB its own.
"""

import gc

gc.collect()
gc.freeze()
