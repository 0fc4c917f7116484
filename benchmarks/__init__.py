"""What we compare with: the stock scripts as users would write them, a bare loop, measured in pairs."""
