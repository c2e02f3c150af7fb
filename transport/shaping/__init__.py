"""How fast bytes leave: token buckets, the shaper, the channel model, and the accounts of each link."""
