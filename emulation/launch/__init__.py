"""Starting the devices of a run as processes or containers, and the loop that runs while they live."""
