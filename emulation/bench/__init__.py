"""`unweft bench`: what the transport and the rounds do, as ratios to a reference measured in the same run."""
