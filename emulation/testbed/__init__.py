"""A testbed whose devices are started one by one, in containers: shared folder, ids, start and records."""
