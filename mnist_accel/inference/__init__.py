"""Uses what a run has trained: the network, other people's images, other people's programs."""
