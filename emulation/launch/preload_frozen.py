"""A forkserver imports this module last. It sets the state in which each child process begins.

The garbage collector does not visit objects that were imported before. A collection writes to each object
that it visits, and a memory page that a child writes to is no longer shared. Without this module, the first
collection of each child makes about 100 MB its own.

A partition's signal that arrives before a device listens to it does not end the process
(peers/runtime/partition.py). Signals to the launcher's process group, as of Ctrl-C, do not end the
forkserver, which has them blocked until here (forkserver.py). The launcher ends its children itself.
"""

import gc
import signal

from emulation.launch import interrupts, temporary_folder
from peers.runtime import partition

temporary_folder.remove_at_exit()
gc.collect()
gc.freeze()
partition.ignore()
for number in interrupts.SIGNALS:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, interrupts.SIGNALS)
