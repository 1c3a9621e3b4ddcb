"""The package while things break at random, replayable from a seed."""
